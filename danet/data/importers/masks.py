"""Mask images: every 8-connected part that is not zero becomes a box.

This is the form of SIRST (Y. Dai et al., arXiv:2009.14530), whose mask of ``Misc_1.png`` is called
``Misc_1_pixels0.png``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from danet.data.importers.output import ImportFolder, find_images, read_names, record
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.image_io import read_image
from danet.utils.progress import track

ENDINGS = ("", "_pixels0", "_mask")


@dataclass
class Options:
    source: str
    """Folder that holds the images and the masks in two folders."""

    out: str
    """Folder to write: images/ and annotations.json, or one json a list."""

    images: str = "images"
    """Folder of the images below the source."""

    masks: str = "masks"
    """Folder of the masks below the source: the image's name, also with _pixels0 or _mask at its end."""

    lists: list[str] = field(default_factory=list)
    """Text files with one image name a line, each of which gives a json of its name (idx_427/train.txt);
    without them all images go into annotations.json."""

    category: str = "target"
    """Name of the category of every box."""

    json: str | None = None
    """Write the number of images, recordings and boxes of each json to this file."""

    quiet: bool = False
    """Print nothing but errors."""


def import_masks(options: Options) -> None:
    """Imports images with mask images: each 8-connected part of a mask becomes a box."""
    source = Path(options.source)
    images = find_images(source / options.images)
    masks = find_images(source / options.masks)
    lists = {f"{Path(name).stem}.json": read_names(name, source) for name in options.lists}
    with ImportFolder(options.out, quiet=options.quiet, json=options.json) as out:
        for json, names in (lists or {"annotations.json": list(images)}).items():
            records = []
            for name in track(names, f"importing {json}", quiet=options.quiet):
                if name not in images:
                    raise UserError(f"{source}: {json} lists {name!r}, but there is no such image in {options.images}")
                mask = next((masks[name + ending] for ending in ENDINGS if name + ending in masks), None)
                if mask is None:
                    raise UserError(f"{images[name]}: no mask in {source / options.masks}")
                path, *size = out.copy(images[name], name + images[name].suffix)
                boxes = mask_boxes(mask, size)
                records.append(record(path, size, boxes, [options.category] * len(boxes)))
            out.write(json, records, [options.category])


def mask_boxes(path: Path, size: Sequence[int]) -> np.ndarray:
    """Boxes ``[M, 4]`` around the 8-connected parts of a mask; ``size`` is the image's (width, height)."""
    mask = read_image(path)
    mask = mask.max(axis=2) if mask.ndim == 3 else mask
    if mask.shape != (size[1], size[0]):
        raise UserError(f"{path}: the mask is {mask.shape[1]} x {mask.shape[0]}, its image {size[0]} x {size[1]}")
    _, _, parts, _ = cv2.connectedComponentsWithStats((mask != 0).astype(np.uint8), connectivity=8)
    x, y, w, h = parts[1:, :4].T
    return np.stack([x, y, x + w, y + h], axis=1)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(import_masks, Options, prog="danet data import masks", positionals=["source", "out"], argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
