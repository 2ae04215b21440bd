"""Images with their annotations in memory, the limits of a dataset, and the repairs that readers of files make."""

import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from danet.utils.errors import UserError
from danet.utils.names import check_name

MAX_CATEGORIES = 10_000
"""Maximum number of categories of a dataset: tables and memory of the commands grow with it."""
MAX_BOXES_PER_IMAGE = 100_000
"""Maximum number of boxes of one image: matching compares all boxes with all detections."""
MAX_IMAGE_SIDE_PIXELS = 1_000_000
"""Maximum width and height that an annotation file may state."""
CLIP_TOLERANCE_PIXELS = 0.01
"""A box that is clipped by at most this much does not count as changed: rounded coordinates cause such differences."""

# Kinds of repairs that several readers make.
CLIPPED = "boxes changed: clipped to the image"
EMPTY = "boxes dropped: no area"
OUTSIDE = "boxes dropped: outside the image"
DUPLICATE = "boxes dropped: exact duplicates of another box"


@dataclass(eq=False)
class ImageRecord:
    """One image with its annotations.

    Attributes:
        path: the image file.
        width, height: size of the image in pixels.
        boxes: float32 ``[M, 4]`` (x0, y0, x1, y1) in pixels; pixel i covers [i, i + 1).
        names: category of each box.
        ignore: bool ``[M]``, True for an ignore region, in which detections count neither as true nor as false
            positives and nothing is trained.
        video: name of the video that the image is a frame of.
        frame: frame number in the video, from 0.
        recording: name of the recording; a split must not divide it, because its images look nearly the same.
        image_id: id of the image in the COCO json that it was read from.
        past: earlier frames of the same video, as pairs of the seconds before this image and the image file.

    Example:
        >>> boxes = np.array([[10, 10, 22, 18]], np.float32)
        >>> record = ImageRecord(Path("a.png"), 64, 48, boxes, ["drone"], np.array([False]), recording="flight 1")
        >>> record.group
        'flight 1'
    """

    path: Path
    width: int
    height: int
    boxes: np.ndarray
    names: list[str]
    ignore: np.ndarray
    video: str | None = None
    frame: int | None = None
    recording: str | None = None
    image_id: int | str | None = None
    past: tuple[tuple[float, Path], ...] = ()

    @property
    def group(self) -> str:
        """Name of the images that a split keeps together: the recording, else the video, else the image's path."""
        return self.recording or self.video or str(self.path)


def annotation_bytes(record: ImageRecord) -> bytes:
    """The file name, the size and the boxes of an image, for hashes of datasets.

    Example:
        >>> record = ImageRecord(Path("a.png"), 64, 48, np.zeros((0, 4), np.float32), [], np.zeros(0, bool))
        >>> annotation_bytes(record)
        b"('a.png', 64, 48, [])"
    """
    header = repr((record.path.name, record.width, record.height, record.names)).encode()
    return header + record.boxes.tobytes() + record.ignore.tobytes()


def fingerprint(records: Sequence[ImageRecord]) -> str:
    """A text that changes with the names, order, sizes, annotations and videos of images, but not with their folder.

    Example:
        >>> record = ImageRecord(Path("a.png"), 64, 48, np.zeros((0, 4), np.float32), [], np.zeros(0, bool))
        >>> fingerprint([record])
        '1 images, 0 boxes, 0156c4974bf1'
    """
    digest = hashlib.sha256()
    for record in records:
        digest.update(annotation_bytes(record) + repr(record.video).encode())
    return f"{len(records)} images, {sum(len(r.names) for r in records)} boxes, {digest.hexdigest()[:12]}"


class Repairs:
    """Counts what a reader has repaired in a dataset, by kind, and remembers the first place of each kind.

    Example:
        >>> repairs = Repairs()
        >>> repairs.add(CLIPPED, "a.txt: line 3")
        >>> repairs.add(CLIPPED, "b.txt: line 1")
        >>> repairs.lines()
        ['2 boxes changed: clipped to the image, the first: a.txt: line 3']
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, kind: str, place: str, count: int = 1) -> None:
        """Counts ``count`` repairs of a kind, such as "boxes changed: clipped to the image"."""
        self.counts[kind] += count
        self.first.setdefault(kind, place)

    def update(self, other: "Repairs") -> None:
        """Adds the counts of another reader."""
        for kind, count in other.counts.items():
            self.add(kind, other.first[kind], count)

    def lines(self) -> list[str]:
        """Returns one line for each kind."""
        return [f"{count} {kind}, the first: {self.first[kind]}" for kind, count in self.counts.items()]


@dataclass(eq=False)
class CocoDataset:
    """A dataset in memory.

    Attributes:
        path: the json, absolute; for a YOLO dataset, the file or folder that names the images.
        records: its images in the order of the file.
        categories: names of all categories in the order of the file.
        warnings: one line for each box that was dropped or clipped, and for other doubtful content.
        repairs: what the reader has repaired, by kind.
        category_ids: id of each category in the json.

    Example:
        >>> CocoDataset(Path("train.json"), records=[], categories=["drone", "bird"]).warnings
        []
    """

    path: Path
    records: list[ImageRecord]
    categories: list[str]
    warnings: list[str] = field(default_factory=list)
    repairs: Repairs = field(default_factory=Repairs)
    category_ids: dict[str, int | str] = field(default_factory=dict)


def check_categories(names: Sequence[object], place: str) -> list[str]:
    """Checks the names of the categories of a dataset, and returns them.

    Raises:
        UserError: if there are more than MAX_CATEGORIES, or a name is invalid (see ``check_name``) or occurs twice.

    Example:
        >>> check_categories(["drone", "bird"], "data.yaml")
        ['drone', 'bird']
    """
    if len(names) > MAX_CATEGORIES:
        raise UserError(f"{place}: there are {len(names)} categories; the limit is {MAX_CATEGORIES}")
    checked = [check_name(name, f"{place}: class {index}") for index, name in enumerate(names)]
    twice = [name for name, count in Counter(checked).items() if count > 1]
    if twice:
        raise UserError(f"{place}: a class name occurs twice: {twice[0]!r}")
    return checked


def check_box_count(count: int, place: str) -> None:
    """Raises UserError if an image has more than MAX_BOXES_PER_IMAGE boxes.

    Example:
        >>> check_box_count(3, "a.txt")
    """
    if count > MAX_BOXES_PER_IMAGE:
        raise UserError(f"{place}: {count} boxes in one image; the limit is {MAX_BOXES_PER_IMAGE}")


def clip_box(box: Sequence[float], width: int, height: int) -> tuple[list[float] | None, str | None]:
    """Clips a box to the image.

    Args:
        box: corners (x0, y0, x1, y1) in pixels, x0 <= x1 and y0 <= y1, finite.
        width, height: size of the image in pixels.

    Returns:
        The clipped corners, or None if nothing is left; and the kind of the repair, or None if nothing changed.

    Example:
        >>> clip_box((30, 20, 50, 40), 40, 30)
        ([30, 20, 40, 30], 'boxes changed: clipped to the image')
    """
    if box[0] >= box[2] or box[1] >= box[3]:
        return None, EMPTY
    corners = [max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)]
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        return None, OUTSIDE
    moved = max(abs(a - b) for a, b in zip(corners, box, strict=True))
    return corners, CLIPPED if moved > CLIP_TOLERANCE_PIXELS else None


def make_record(
    path: Path,
    size: Sequence[int],
    boxes: Sequence[Sequence[float]] | np.ndarray,
    names: Sequence[str],
    ignore: Sequence[bool] | None = None,
    *,
    repairs: Repairs,
    place: str | None = None,
    **extras: Any,
) -> ImageRecord:
    """Makes an ImageRecord: clips boxes to the image, and drops boxes without area and exact duplicates.

    Args:
        path: the image file.
        size: (width, height) in pixels.
        boxes: M boxes (x0, y0, x1, y1) in pixels.
        names: category of each box.
        ignore: whether each box is an ignore region; by default none is.
        repairs: counts what was changed.
        place: where the boxes come from, for the lines about repairs; by default the image.
        extras: ``video``, ``frame``, ``recording``, ``image_id`` and ``past``.

    Raises:
        UserError: if there are more than MAX_BOXES_PER_IMAGE boxes, or a coordinate is not finite.

    Example:
        >>> repairs = Repairs()
        >>> boxes = [(10, 10, 22, 18), (10, 10, 22, 18), (60, 40, 70, 48)]
        >>> make_record(Path("a.png"), (64, 48), boxes, ["drone"] * 3, repairs=repairs).boxes
        array([[10., 10., 22., 18.],
               [60., 40., 64., 48.]], dtype=float32)
        >>> list(repairs.counts)
        ['boxes dropped: exact duplicates of another box', 'boxes changed: clipped to the image']
    """
    place = place or str(path)
    check_box_count(len(names), place)
    flags = np.zeros(len(names), bool) if ignore is None else np.array(ignore, bool)
    kept: dict[tuple, None] = {}  # keeps the order
    for box, name, flag in zip(np.asarray(boxes).reshape(-1, 4).tolist(), names, flags.tolist(), strict=True):
        if not all(abs(value) <= sys.float_info.max for value in box):
            raise UserError(f"{place}: a box has a coordinate that is not finite, got {box}")
        corners, kind = clip_box(box, *size)
        if kind:
            repairs.add(kind, place)
        if corners is None:
            continue
        key = (tuple(corners), name, flag)
        if key in kept:
            repairs.add(DUPLICATE, place)
        kept[key] = None
    array = np.array([box for box, _, _ in kept], np.float32).reshape(-1, 4)
    flags = np.array([flag for _, _, flag in kept], bool)
    return ImageRecord(path, size[0], size[1], array, [name for _, name, _ in kept], flags, **extras)
