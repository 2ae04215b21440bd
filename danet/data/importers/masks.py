"""Imports images with binary masks: every 8-connected component of a mask becomes a box.

SIRST (Y. Dai et al., https://arxiv.org/abs/2009.14530) has this format; its mask of ``Misc_1.png`` is
``Misc_1_pixels0.png``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from danet.data.image_folder import find_images
from danet.data.importers.base import ImportFolder, ImportOptions, read_lists, run_import
from danet.utils.errors import UserError
from danet.utils.image_io import read_image
from danet.utils.names import check_name
from danet.utils.progress import track

# Endings of a mask's name after the name of its image.
MASK_ENDINGS = ("", "_pixels0", "_mask")

MAX_INSTANCES = 15
"""A mask whose maximum is at most this numbers its objects 1, 2, 3, ...; a larger maximum is a brightness."""
SOFT = "masks with values between 0 and their maximum: pixels count from half of the maximum on"


@dataclass
class Options(ImportOptions):
    """Options of ``danet data import masks``."""

    source: str
    """Folder that contains a folder of images and a folder of masks."""

    out: str
    """Output folder; the import writes images/ and annotations.json, or one json per list."""

    images: str = "images"
    """Folder of the images, relative to the source."""

    masks: str = "masks"
    """Folder of the masks, relative to the source. The mask of NAME.png is called NAME, NAME_pixels0 or NAME_mask."""

    lists: list[str] = field(default_factory=list)
    """Text files with one image name per line, such as idx_427/train.txt; the import writes a json for each of them.
    Without lists, all images go into annotations.json."""

    category: str = "target"
    """Category of all boxes."""


def import_masks(options: Options) -> None:
    """Imports images with masks: every 8-connected component of a mask becomes a box."""
    source = Path(options.source)
    check_name(options.category, "--category")
    images = find_images(source / options.images)
    masks = find_images(source / options.masks)
    lists = read_lists(options.lists, source)
    with ImportFolder(options) as out:
        for json, names in (lists or {"annotations.json": list(images)}).items():
            records = []
            for name in track(out.without_repetitions(names, json), f"importing {json}", quiet=options.quiet):
                if name not in images:
                    raise UserError(f"{source}: {json} lists {name!r}, but there is no such image in {options.images}")
                mask = next((masks[name + ending] for ending in MASK_ENDINGS if name + ending in masks), None)
                if mask is None:
                    raise UserError(f"{images[name]}: no mask in {source / options.masks}")
                path, *size = out.copy(images[name], name + images[name].suffix)
                boxes, is_soft = mask_boxes(mask, size)
                if is_soft:
                    out.repairs.add(SOFT, str(mask))
                records.append(out.record(path, size, boxes, [options.category] * len(boxes)))
            out.write(json, records, [options.category])


def mask_boxes(path: Path, size: Sequence[int]) -> tuple[np.ndarray, bool]:
    """Finds the bounding boxes of the 8-connected components of a mask.

    Masks with smooth edges, and masks saved as JPEG, have values between 0 and their maximum: a pixel belongs to a
    target from half of the maximum on. In a mask with a maximum of at most MAX_INSTANCES, every value but 0 does.

    Args:
        path: the mask; its background is 0 in all channels.
        size: (width, height) of the image that the mask belongs to.

    Returns:
        int ``[M, 4]`` boxes (x0, y0, x1, y1) in pixels, and whether half of the maximum made a difference.

    Raises:
        UserError: if the mask cannot be read or has another size.

    Example:
        >>> path = getfixture("tmp_path") / "a.png"
        >>> _ = cv2.imwrite(str(path), np.array([[0, 0, 0, 0], [0, 255, 255, 64]], np.uint8))
        >>> mask_boxes(path, (4, 2))
        (array([[1, 1, 3, 2]], dtype=int32), True)
    """
    mask = read_image(path)
    mask = mask.max(axis=2) if mask.ndim == 3 else mask
    if mask.shape != (size[1], size[0]):
        raise UserError(f"{path}: the mask is {mask.shape[1]} x {mask.shape[0]}, its image {size[0]} x {size[1]}")
    maximum = int(mask.max())
    threshold = 1 if maximum <= MAX_INSTANCES else -(-maximum // 2)
    target = mask >= threshold
    _, _, components, _ = cv2.connectedComponentsWithStats(target.astype(np.uint8), connectivity=8)
    x, y, w, h = components[1:, :4].T  # component 0 is the background
    is_soft = threshold > 1 and bool((mask[mask > 0] < maximum).any())
    return np.stack([x, y, x + w, y + h], axis=1), is_soft


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``danet data import masks``."""
    return run_import(import_masks, Options, argv)
