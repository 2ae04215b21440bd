"""The infrared videos of Svanstrom et al. (doi:10.1016/j.dib.2021.107521) and their MATLAB labels.

``IR_DRONE_001.mp4`` goes with ``IR_DRONE_001_LABELS.mat``, a ``groundTruth`` object of MATLAB's Computer
Vision Toolbox: one row a frame, one column a class, in each cell an n x 4 matrix of x, y, width, height
whose first pixel is 1. ``splits.json``, where there is one, divides the videos by recording and holds the
counts that a reader must find.
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from danet.data.coco_dataset import ImageRecord
from danet.data.importers.base import ImportFolder, ImportOptions, make_record, run_import
from danet.utils.errors import UserError
from danet.utils.files import read_json
from danet.utils.image_io import squeeze_grey
from danet.utils.progress import track

CLASSES = ("drone", "bird", "airplane", "helicopter")
BUCKETS = ("small", "medium", "large")

Labels = list[dict[str, np.ndarray]]
"""For each frame the boxes of each class: float64 ``[n, 4]`` corners in 0-based pixels; no empty arrays."""


@dataclass
class Options(ImportOptions):
    """Options of ``danet data import svanstrom``."""

    source: str
    """Folder with the videos, their label files and, if there is one, splits.json."""

    out: str
    """Folder to write: images/VIDEO/FRAME.png and one json a split (annotations.json without splits.json)."""

    split: Literal["train", "val", "all"] = "all"
    """Which split of splits.json to import."""

    stride: int = 1
    """Take the frames 0, N, 2N, ... of each video."""

    class_stride: dict[str, int] = field(default_factory=dict)
    """Another stride for the videos of some classes, such as '{bird: 15, airplane: 15}'."""


@dataclass(frozen=True)
class Video:
    """One video of the folder.

    ``expected`` is its entry of splits.json, None without one; ``size_edges`` are the two pixel sizes between
    its small, medium and large boxes.
    """

    path: Path
    name: str
    category: str
    split: str
    recording: str | None
    expected: dict | None
    size_edges: tuple[float, ...] = ()


def import_svanstrom(options: Options) -> None:
    """Imports the Svanstrom infrared videos with their MATLAB labels as COCO and grey PNG frames."""
    for name, stride in [("stride", options.stride), *options.class_stride.items()]:
        if stride < 1:
            raise UserError(f"{name}: a stride must be 1 or more, got {stride}")
    for name in options.class_stride:
        if name not in CLASSES:
            raise UserError(f"--class_stride: unknown class {name!r}; choose from {', '.join(CLASSES)}")
    videos = find_videos(Path(options.source), options.split)
    records: dict[str, list[ImageRecord]] = {}
    with ImportFolder(options) as out:
        for video in track(videos, "importing videos", quiet=options.quiet):
            stride = options.class_stride.get(video.category, options.stride)
            records.setdefault(video.split, []).extend(import_video(video, out, stride))
        for split, items in records.items():
            out.write(f"{split}.json", items, CLASSES)


def find_videos(folder: Path, split: str = "all") -> list[Video]:
    """The videos of ``folder`` in the order of their names, those of one split or all; at least one."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    listing = folder / "splits.json"
    if listing.is_file():
        entries, edges = _read_listing(listing)
        videos = [_listed(listing, item, edges) for item in entries]
        videos = [video for video in videos if split in ("all", video.split)]
    elif split != "all":
        raise UserError(f"{listing}: no such file; without it only --split all is possible")
    else:
        videos = [Video(path, path.stem, _class_of(path), "annotations", None, None) for path in folder.glob("*.mp4")]
    if not videos:
        raise UserError(f"{folder}: no videos to import (IR_<CLASS>_<NUMBER>.mp4)")
    return sorted(videos, key=lambda video: video.name)


def import_video(video: Video, out: ImportFolder, stride: int) -> list[ImageRecord]:
    """Decodes one video once, in order, and stores every ``stride``-th frame; frames without boxes are kept."""
    labels = read_labels(video.path.with_name(f"{video.name}_LABELS.mat"))
    if video.expected is not None:
        check_counts(video, labels)
    records = []
    decoded = 0
    for index, image in decode(video.path, stride):
        decoded = index + 1
        if image is None or index >= len(labels):
            continue
        path = out.save_png(image, f"{video.name}/{index:06d}.png")
        boxes = [box for found in labels[index].values() for box in found]
        names = [name for name, found in labels[index].items() for _ in found]
        size = image.shape[1], image.shape[0]
        extras: dict[str, Any] = {"video": video.name, "frame": index, "recording": video.recording or video.name}
        records.append(make_record(path, size, boxes, names, **extras))
    if decoded != len(labels):
        raise UserError(f"{video.path}: {decoded} frames can be decoded, but {len(labels)} are labelled")
    return records


def decode(path: Path, stride: int) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yields each frame's index and, every ``stride`` frames, its grey image (uint8 ``[H, W]``), else None."""
    capture = cv2.VideoCapture(str(path)) if path.is_file() else None
    if capture is None:
        raise UserError(f"{path}: no such video")
    if not capture.isOpened():
        raise UserError(f"{path}: not a readable video")
    try:
        index = 0
        while capture.grab():
            image = None
            if index % stride == 0:
                decoded, image = capture.retrieve()
                if not decoded:
                    return
                image = squeeze_grey(image)
                image = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
            yield index, image
            index += 1
    finally:
        capture.release()


def read_labels(path: str | os.PathLike) -> Labels:
    """Reads a label file; see ``Labels``. Several boxes a frame and several classes a file are usual."""
    try:
        import matio  # an optional dependency, and it takes half a second to load
    except ImportError as error:
        raise UserError(f"{path}: reading MATLAB labels needs mat-io: pip install mat-io ({error})") from error
    if not Path(path).is_file():
        raise UserError(f"{path}: no such label file")
    try:
        with warnings.catch_warnings():
            # Of its warnings only matio's own count: it warns, and returns something else, where it cannot read.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", category=UserWarning)
            content = matio.load_from_mat(str(path))
        table = content["gTruth"].properties["any"][0, 0]["LabelData"][:, 0]
        columns = {name: name.lower() for name in table.dtype.names if name != "Time"}
    except Exception as error:  # matio raises all sorts on broken files, and may return something else
        raise UserError(f"{path}: no readable groundTruth labels ({type(error).__name__}: {error})") from error
    for name in columns.values():
        if name not in CLASSES:
            raise UserError(f"{path}: unknown class {name!r}; known are {', '.join(CLASSES)}")

    labels: Labels = []
    for index, row in enumerate(table):
        found = {}
        for column, name in columns.items():
            cell = row[column]
            if not cell.size:
                continue
            if cell.ndim != 2 or cell.shape[1] != 4:
                raise UserError(f"{path}: frame {index}: boxes of {name} must be n x 4, got {cell.shape}")
            if not np.isfinite(cell).all() or (cell[:, 2:] <= 0).any():
                raise UserError(f"{path}: frame {index}: a box of {name} is not finite or has no area: {cell.tolist()}")
            corner = cell[:, :2].astype(float) - 1.0  # MATLAB's first pixel is 1
            found[name] = np.concatenate([corner, corner + cell[:, 2:]], axis=1)
        labels.append(found)
    return labels


def check_counts(video: Video, labels: Labels) -> None:
    """Compares what was read with every count in splits.json; sizes are those of the video's own class."""
    place = f"{video.path.with_name(video.name)}_LABELS.mat"
    boxes: Counter[str] = Counter()
    expected = video.expected or {}
    for frame in labels:
        boxes.update({name: len(found) for name, found in frame.items()})
    own = [frame[video.category] for frame in labels if video.category in frame]
    corners = np.concatenate([np.zeros((0, 4)), *own])
    sizes = np.sqrt((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]))
    in_bucket = np.bincount(np.digitize(sizes, video.size_edges), minlength=len(BUCKETS))
    read = {
        "frames": len(labels),
        "labelled_frames": sum(bool(frame) for frame in labels),
        "boxes": dict(boxes),
        "max_boxes_in_a_frame": max((sum(map(len, frame.values())) for frame in labels), default=0),
        "boxes_by_size": dict(zip(BUCKETS, in_bucket.tolist(), strict=True)),
        "mean_box_sqrt_area_px": round(float(sizes.mean()), 1) if sizes.size else None,
    }
    for key, value in read.items():
        if key not in expected:
            raise UserError(f"{place}: splits.json has no {key!r} of this video to compare with")
        if expected[key] != value:
            said = f"read {value}, but splits.json says {expected[key]}"
            raise UserError(f"{place}: {key.replace('_', ' ')}: {said}")


def _read_listing(path: Path) -> tuple[list[dict], tuple[float, ...]]:
    """The videos of splits.json, and the edges in its {"small": "sqrt(w*h) < 14", ..., "large": "sqrt(w*h) >= 18"}."""
    content = read_json(path)
    entries = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
        raise UserError(f"{path}: must hold a list 'videos' of objects")
    buckets = content.get("size_buckets_px")
    texts = [buckets.get(name) if isinstance(buckets, dict) else None for name in ("small", "large")]
    found = [re.fullmatch(r"sqrt\(w\*h\) (?:<|>=) (\d+(?:\.\d+)?)", str(text)) for text in texts]
    edges = [edge for edge in found if edge is not None]
    if len(edges) < len(found):
        raise UserError(f"{path}: 'size_buckets_px' must give edges such as 'sqrt(w*h) < 14', got {buckets}")
    return entries, tuple(float(edge[1]) for edge in edges)


def _listed(path: Path, item: dict, size_edges: tuple[float, ...]) -> Video:
    name = str(item.get("video"))
    for key in ("video", "split", "class", "recording"):
        if not isinstance(item.get(key), str):
            raise UserError(f"{path}: video {name}: {key!r} is missing")
    return Video(path.parent / f"{name}.mp4", name, item["class"], item["split"], item["recording"], item, size_edges)


def _class_of(path: Path) -> str:
    """The class in a file name such as IR_DRONE_001.mp4."""
    parts = path.stem.lower().split("_")
    if len(parts) < 3 or parts[1] not in CLASSES:
        raise UserError(f"{path}: the name must be IR_<CLASS>_<NUMBER>.mp4 with a class of {', '.join(CLASSES)}")
    return parts[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``danet data import svanstrom``."""
    return run_import(import_svanstrom, Options, argv)
