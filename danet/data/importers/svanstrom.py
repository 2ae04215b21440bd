"""Imports the infrared videos of Svanstrom et al. (https://doi.org/10.1016/j.dib.2021.107521) and their MATLAB labels.

The labels of ``IR_DRONE_001.mp4`` are in ``IR_DRONE_001_LABELS.mat``, a ``groundTruth`` object of MATLAB's Computer
Vision Toolbox: a table with one row per frame and one column per class. Each cell is an n x 4 matrix of x, y, width and
height in pixels, in which the first pixel is 1. Reading them needs ``pip install mat-io``.

The optional ``splits.json`` assigns the videos to splits by recording and states counts that the import checks. The
original dataset has no such file. The import then makes the splits (our decision):

1. Clips that continue one another are one recording: many clips are cut from a longer video, so that the first frame
   of a clip shows the same scene as the last frame of the clip before, by number, of its class. Clips continue one
   another if the average hashes of these two frames differ by at most MAX_CUT_DISTANCE_BITS.
2. Recordings are divided by ``split_by_recording``, as in ``danet data split``: VAL_FRACTION of the frames and of the
   boxes of each class go into val.json, and the rest into train.json. The result is the same every time.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from danet.data.coco_dataset import ImageRecord
from danet.data.importers.base import ImportFolder, ImportOptions, run_import
from danet.data.importers.svanstrom_labels import CLASSES, Labels, read_labels
from danet.data.leakage import HASH_BITS, average_hash
from danet.data.recording_split import split_by_recording
from danet.data.scales import SCALES, box_sizes
from danet.data.temporal import choose_frames
from danet.data.video_decoder import open_capture
from danet.utils.errors import UserError
from danet.utils.files import read_json
from danet.utils.image_io import squeeze_grey
from danet.utils.names import check_name, join_name, quote
from danet.utils.progress import track

VAL_FRACTION = 0.15
"""Fraction of the frames that goes into val.json without a splits.json."""
MAX_CUT_DISTANCE_BITS = 144
"""Largest distance, of 1024 bits, between the average hashes of two frames between which a recording was only cut. On
255 videos whose recordings are known, this finds 161 of 163 such pairs, and joins 13 of 88 others, which is
harmless."""
MAX_FRAMES_PER_SECOND = 1000.0
"""A video that states a higher rate has a damaged header."""
NO_FRAME_AT_LAG = "lags of a video dropped: its frames are too far apart"
"""A kind of repair."""
ORIGINAL_FOLDER = Path("Data", "Video_IR")
"""Folder of the infrared videos in the original repository, Drone-detection-dataset."""


@dataclass
class Options(ImportOptions):
    """Options of ``danet data import svanstrom``."""

    source: str
    """Folder with the videos, their label files and, optionally, splits.json; or the original repository, which has
    them in Data/Video_IR. Reading the labels needs `pip install mat-io`."""

    out: str
    """Output folder; the import writes images/VIDEO/FRAME.png, train.json and val.json. Without splits.json, the
    recordings are divided at 85 : 15; a folder with a single recording gives annotations.json."""

    split: Literal["train", "val", "all"] = "all"
    """Split to import."""

    stride: int = 1
    """Imports the frames 0, N, 2N, ... of each video."""

    class_stride: dict[str, int] = field(default_factory=dict)
    """Different strides for the videos of some classes, such as '{bird: 15, airplane: 15}'."""

    lags: list[float] = field(default_factory=list)
    """Seconds: for each imported frame, also store the frames that are about that much earlier, for networks with
    `model.lags`. The annotation file states the real age of each, which depends on the frame rate of the video."""


@dataclass(frozen=True)
class Video:
    """One video of the folder.

    Attributes:
        path: the video file.
        name: its name without suffix.
        category: class of the objects that the video was recorded for.
        split: name of the annotation file that it belongs to, without suffix.
        recording: name of its recording.
        expected: its entry of splits.json, with counts to check; None without splits.json.
        size_edges: edges between small, medium and large boxes in pixels, from splits.json.
        labels: its labels, if they have been read already.
    """

    path: Path
    name: str
    category: str
    split: str
    recording: str
    expected: dict | None
    size_edges: tuple[float, ...] = ()
    labels: Labels | None = None


def import_svanstrom(options: Options) -> None:
    """Imports the Svanstrom infrared videos with their MATLAB labels as COCO jsons and grey PNG frames."""
    for name, stride in [("stride", options.stride), *options.class_stride.items()]:
        if stride < 1:
            raise UserError(f"{name}: a stride must be 1 or more, got {stride}")
    for name in options.class_stride:
        if name not in CLASSES:
            raise UserError(f"--class_stride: unknown class {name!r}; choose from {', '.join(CLASSES)}")
    for lag in options.lags:
        if not 0 < lag < math.inf:
            raise UserError(f"--lags: must be positive seconds, got {lag}")
    videos = find_videos(Path(options.source), options.split, quiet=options.quiet)
    records: dict[str, list[ImageRecord]] = {}
    with ImportFolder(options) as out:
        for video in track(videos, "importing videos", quiet=options.quiet):
            stride = options.class_stride.get(video.category, options.stride)
            records.setdefault(video.split, []).extend(import_video(video, out, stride, options.lags))
        for split, items in records.items():
            out.write(f"{split}.json", items, CLASSES)
        if videos[0].expected is None:
            recordings = len({video.recording for video in videos})
            out.note(f"{options.source}: no splits.json; {len(videos)} videos of {recordings} recordings were divided")


def find_videos(folder: Path, split: str = "all", *, quiet: bool = False) -> list[Video]:
    """Finds the videos of a folder, or of one split, sorted by name.

    Raises:
        UserError: if there is no such folder or no video in it, splits.json is invalid, a split is requested that the
            folder does not have, or a file name does not contain a class.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not _mp4s(folder) and (folder / ORIGINAL_FOLDER).is_dir():
        folder = folder / ORIGINAL_FOLDER
    listing = folder / "splits.json"
    if listing.is_file():
        entries, edges = _read_listing(listing)
        videos = [_listed(listing, item, edges) for item in entries]
        twice = [name for name, count in Counter(video.name for video in videos).items() if count > 1]
        if twice:
            raise UserError(f"{listing}: video {quote(twice[0])} is listed twice")
    else:
        videos = assign_splits(_mp4s(folder), quiet=quiet)
    videos = [video for video in videos if split in ("all", video.split)]
    if not videos:
        raise UserError(f"{folder}: no videos to import (IR_<CLASS>_<NUMBER>.mp4, --split {split})")
    return sorted(videos, key=lambda video: video.name)


def assign_splits(paths: Sequence[Path], *, quiet: bool = False) -> list[Video]:
    """Finds the recordings of videos and divides them into "train" and "val"; "annotations" if there is only one.

    The rule is in the description of this module.

    Args:
        paths: the videos.
        quiet: show no progress.

    Raises:
        UserError: if a video or its labels cannot be read, or a file name does not contain a class.
    """
    recordings = find_recordings(paths, quiet=quiet)
    videos, records = [], []
    for path in track(paths, "reading labels", quiet=quiet):
        labels = read_labels(_label_file(path))
        names = [name for frame in labels for name, boxes in frame.items() for _ in boxes]
        # The first frame stands for the boxes of all frames; only their numbers count.
        boxes, ignore = np.zeros((len(names), 4), np.float32), np.zeros(len(names), bool)
        first = ImageRecord(path, 1, 1, boxes, names, ignore, recording=recordings[path])
        records += [first, *[replace(first, boxes=boxes[:0], names=[], ignore=ignore[:0])] * (len(labels) - 1)]
        videos.append(Video(path, path.stem, _class_of(path), "annotations", recordings[path], None, labels=labels))
    if len(set(recordings.values())) < 2:
        return videos
    _, val = split_by_recording(records, [1 - VAL_FRACTION, VAL_FRACTION], seed=0)
    held_out = {record.recording for record in val}
    return [replace(video, split="val" if video.recording in held_out else "train") for video in videos]


def _label_file(video: Path) -> Path:
    return video.with_name(f"{video.stem}_LABELS.mat")


def find_recordings(paths: Sequence[Path], *, quiet: bool = False) -> dict[Path, str]:
    """Finds the recording of each video: video -> name of the first clip of its recording.

    Raises:
        UserError: if a video cannot be read, or its name does not contain a class.
    """
    recordings: dict[Path, str] = {}
    last: tuple[str, np.ndarray] | None = None  # class and hash of the last frame of the clip before
    for path in track(sorted(paths), "finding recordings", quiet=quiet):
        category = _class_of(path)
        begin, end = (average_hash(image) for image in _end_frames(path))
        differing = HASH_BITS if last is None or last[0] != category else (HASH_BITS - int(last[1] @ begin)) // 2
        if differing > MAX_CUT_DISTANCE_BITS:
            name = path.stem
        recordings[path] = name
        last = category, end.astype(int)
    return recordings


def _end_frames(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last frame of a video, found by seeking; without a frame count, all frames are decoded."""
    first = next((image for _, image in decode(path, 1)), None)
    capture = open_capture(str(path))
    capture.set(cv2.CAP_PROP_POS_FRAMES, capture.get(cv2.CAP_PROP_FRAME_COUNT) - 1)
    decoded, found = capture.read()
    capture.release()
    last = found if decoded else None
    if last is None:
        for _, image in decode(path, 1):
            last = image
    if first is None or last is None:
        raise UserError(f"{path}: not a readable video")
    return first, last


def _mp4s(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.mp4") if not path.name.startswith("._"))


def import_video(video: Video, out: ImportFolder, stride: int, lags: Sequence[float] = ()) -> list[ImageRecord]:
    """Stores every ``stride``-th frame of a video, also those without boxes, and returns their records.

    For each of these frames and each of the ``lags`` in seconds, the frame whose age is nearest to the lag is stored,
    too. The records state the age that this frame has at the frame rate of the video.

    Raises:
        UserError: if the video or its labels cannot be read, their numbers of frames differ, or a count differs from
            splits.json; or if there are lags and the video does not state its frames per second.
    """
    labels = video.labels if video.labels is not None else read_labels(_label_file(video.path))
    if video.expected is not None:
        check_counts(video, labels)
    steps = _past_steps(video, out, lags) if lags else {}
    records = []
    stored: dict[int, Path] = {}
    decoded = 0
    for index, image in decode(video.path, stride, ahead=(0, *steps)):
        decoded = index + 1
        if image is None or index >= len(labels):
            continue
        path = stored[index] = out.save_png(image, f"{video.name}/{index:06d}.png")
        if index % stride:
            continue
        boxes = [box for found in labels[index].values() for box in found]
        names = [name for name, found in labels[index].items() for _ in found]
        size = image.shape[1], image.shape[0]
        past = tuple((age, stored[index - step]) for step, age in steps.items() if index >= step)
        extras = {"video": video.name, "frame": index, "recording": video.recording, "past": past}
        records.append(out.record(path, size, boxes, names, place=f"{video.name} frame {index}", **extras))
    if decoded != len(labels):
        raise UserError(f"{video.path}: {decoded} frames can be decoded, but {len(labels)} are labelled")
    return records


def _past_steps(video: Video, out: ImportFolder, lags: Sequence[float]) -> dict[int, float]:
    """Finds the earlier frames to store: number of frames before an image -> its age in seconds.

    A lag is dropped, and counted as a repair, if networks would not use the frame that is nearest to it.
    """
    rate = _frame_rate(video.path)
    steps = {}
    for lag in lags:
        step = max(1, round(lag * rate))
        if choose_frames([(step / rate, step)], [lag]):
            steps[step] = step / rate
        else:
            out.repairs.add(NO_FRAME_AT_LAG, f"{video.name}: {lag:g} s at {rate:g} frames per second")
    return steps


def _frame_rate(path: Path) -> float:
    """Frames per second that a video states."""
    capture = open_capture(str(path))
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    capture.release()
    if not 0 < rate < MAX_FRAMES_PER_SECOND:
        raise UserError(f"{path}: states no frame rate, which --lags needs, got {rate}")
    return rate


def decode(path: Path, stride: int, ahead: Sequence[int] = (0,)) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yields the index of each frame and, for some frames, the grey image, uint8 ``[H, W]``, else None.

    These frames are the ``stride``-th ones, and those that come a number of frames in ``ahead`` before one of them.

    Raises:
        UserError: if the video is missing or cannot be opened.
    """
    capture = open_capture(str(path)) if path.is_file() else None
    if capture is None:
        raise UserError(f"{path}: no such video")
    if not capture.isOpened():
        raise UserError(f"{path}: not a readable video")
    try:
        index = 0
        while capture.grab():
            image = None
            if any((index + step) % stride == 0 for step in ahead):
                decoded, image = capture.retrieve()
                if not decoded:
                    return
                image = squeeze_grey(image)
                image = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
            yield index, image
            index += 1
    finally:
        capture.release()


def check_counts(video: Video, labels: Labels) -> None:
    """Compares the labels with the counts in splits.json; only boxes of the video's own class count for the sizes.

    Raises:
        UserError: if a count is missing in splits.json, or differs.
    """
    place = f"{video.path.with_name(video.name)}_LABELS.mat"
    boxes: Counter[str] = Counter()
    expected = video.expected or {}
    for frame in labels:
        boxes.update({name: len(found) for name, found in frame.items()})
    own = [frame[video.category] for frame in labels if video.category in frame]
    corners = np.concatenate([np.zeros((0, 4)), *own])
    sizes = box_sizes(corners)
    in_bucket = np.bincount(np.digitize(sizes, video.size_edges), minlength=len(SCALES))
    read = {
        "frames": len(labels),
        "labelled_frames": sum(bool(frame) for frame in labels),
        "boxes": dict(boxes),
        "max_boxes_in_a_frame": max((sum(map(len, frame.values())) for frame in labels), default=0),
        "boxes_by_size": dict(zip(SCALES, in_bucket.tolist(), strict=True)),
        "mean_box_sqrt_area_px": round(float(sizes.mean()), 1) if sizes.size else None,
    }
    for key, value in read.items():
        if key not in expected:
            raise UserError(f"{place}: splits.json has no {key!r} of this video to compare with")
        if expected[key] != value:
            said = f"read {value}, but splits.json says {quote(expected[key])}"
            raise UserError(f"{place}: {key.replace('_', ' ')}: {said}")


def _read_listing(path: Path) -> tuple[list[dict], tuple[float, ...]]:
    """Reads splits.json: its list of videos, and the edges of its size buckets, which it states as texts such as
    {"small": "sqrt(w*h) < 14", ..., "large": "sqrt(w*h) >= 18"}."""
    content = read_json(path)
    entries = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
        raise UserError(f"{path}: must contain a list 'videos' of objects")
    buckets = content.get("size_buckets_px")
    texts = [buckets.get(name) if isinstance(buckets, dict) else None for name in ("small", "large")]
    found = [re.fullmatch(r"sqrt\(w\*h\) (?:<|>=) (\d+(?:\.\d+)?)", str(text)) for text in texts]
    edges = [edge for edge in found if edge is not None]
    if len(edges) < len(found):
        raise UserError(f"{path}: 'size_buckets_px' must give edges such as 'sqrt(w*h) < 14', got {quote(buckets)}")
    values = tuple(float(edge[1]) for edge in edges)
    if not 0 < values[0] <= values[1] < math.inf:
        raise UserError(f"{path}: the edges of 'size_buckets_px' must ascend, got {quote(buckets)}")
    return entries, values


def _listed(path: Path, item: dict, size_edges: tuple[float, ...]) -> Video:
    """Makes a Video of an entry of splits.json; its names become names of files, which must lie in one folder."""
    place = f"{path}: video {quote(item.get('video'))[1:-1]}"
    for key in ("video", "split", "class", "recording"):
        if not isinstance(item.get(key), str):
            raise UserError(f"{place}: {key!r} is missing")
        check_name(item[key], f"{place}: {key}")
    for key in ("video", "split"):
        if len(join_name(path.parent, item[key], f"{place}: {key}").relative_to(path.parent).parts) != 1:
            raise UserError(f"{place}: {key} must be a name without folders, got {quote(item[key])}")
    if item["class"] not in CLASSES:
        raise UserError(f"{place}: class must be one of {', '.join(CLASSES)}, got {quote(item['class'])}")
    file = path.parent / f"{item['video']}.mp4"
    return Video(file, item["video"], item["class"], item["split"], item["recording"], item, size_edges)


def _class_of(path: Path) -> str:
    """Returns the class in a file name such as IR_DRONE_001.mp4."""
    parts = path.stem.lower().split("_")
    if len(parts) < 3 or parts[1] not in CLASSES:
        raise UserError(f"{path}: the name must be IR_<CLASS>_<NUMBER>.mp4 with a class of {', '.join(CLASSES)}")
    return parts[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``danet data import svanstrom``."""
    return run_import(import_svanstrom, Options, argv)
