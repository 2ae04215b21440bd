"""``danet data synthesize``: generates infrared scenes with drones and distractors, as COCO jsons and images."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from danet.data.class_map import IGNORE
from danet.data.coco_dataset import ImageRecord, dataset_files, load_coco, write_coco
from danet.data.dataset_summary import write_summary
from danet.data.synthetic.clip import write_video
from danet.data.synthetic.scene import CATEGORIES, make_scene
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.files import write_text
from danet.utils.progress import track

MARKER_FILE = "synthesize.yaml"
"""File with the options, which marks a folder as an output of this command."""


@dataclass
class Options:
    """Options of ``danet data synthesize``."""

    out: str
    """Output folder for train.json, val.json, video.json, video.mp4 and the folders train/, val/ and video/."""

    images: int = 400
    """Number of training scenes."""

    val_images: int = 100
    """Number of validation scenes; they have other backgrounds than the training scenes."""

    video_frames: int = 0
    """Number of frames of a video (30 frames per second) with flying drones and birds; 0 makes no video."""

    size: str = "256x320"
    """Height x width of the images in pixels, from 64x64 to 4096x4096."""

    bits: Literal[8, 16] = 8
    """Bits per pixel: 8 as in videos, or 16 for the 14-bit counts of a sensor."""

    seed: int = 0
    """Seed; the same seed gives the same files. A scene depends only on the seed and on its number."""

    stress: str | None = None
    """COCO json of real frames, better with earlier frames (`danet data import ... --lags`). Instead of scenes, makes a
    stress set: tiny dim targets, half of them moving, are pasted into some of these frames. The output is moving.json,
    still.json and their images; --images is the number of targets in each."""

    overwrite: bool = False
    """Replace a folder that this command has written before."""

    json: str | None = None
    """JSON file for the number of images and boxes of each dataset."""

    quiet: bool = False
    """Print only errors."""


def synthesize(options: Options) -> None:
    """Generates synthetic infrared scenes with drones of 3 to 60 pixels, and with birds, leaves, hot corners of
    buildings and airplanes as labelled distractors."""
    size = _check(options)
    out = Path(options.out)
    try:
        with _new_folder(out) as folder:
            written = _write_stress(folder, options) if options.stress else _write(folder, size, options)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error
    write_summary({out / name: records for name, records in written.items()}, json=options.json, quiet=options.quiet)


def _write(folder: Path, size: tuple[int, int], options: Options) -> dict[str, list[ImageRecord]]:
    """Writes all files; returns the records of each json."""
    written: dict[str, list[ImageRecord]] = {}
    for number, (split, count) in enumerate((("train", options.images), ("val", options.val_images))):
        if count:
            seeds = [(options.seed, number, index) for index in range(count)]
            written[f"{split}.json"] = _write_scenes(folder, split, seeds, size, options)
    if options.video_frames:
        seed = (options.seed, 2)
        written["video.json"] = write_video(folder, seed, options.video_frames, size, options.bits, options.quiet)
    for name, records in written.items():
        write_coco(folder / name, records, CATEGORIES)
    write_text(folder / MARKER_FILE, cli.dump(options))
    return written


def _write_stress(folder: Path, options: Options) -> dict[str, list[ImageRecord]]:
    """Writes the two stress sets; returns the records of each json."""
    from danet.data.synthetic.stress import TARGET, make_stress_set  # loads torch, which takes seconds

    frames = load_coco(str(options.stress)).records
    written = {}
    for name, moving in (("moving", True), ("still", False)):
        seed = (options.seed, 3, int(moving))
        made = make_stress_set(frames, folder / name, options.images, seed, moving=moving, quiet=options.quiet)
        written[f"{name}.json"] = made
        write_coco(folder / f"{name}.json", made, [TARGET, IGNORE])
    write_text(folder / MARKER_FILE, cli.dump(options))
    return written


def _write_scenes(
    folder: Path, split: str, seeds: Sequence[tuple[int, ...]], size: tuple[int, int], options: Options
) -> list[ImageRecord]:
    """Writes one scene per seed as ``SPLIT/INDEX.png``; returns their records."""
    (folder / split).mkdir()
    records = []
    for index, seed in enumerate(track(seeds, f"making {split} scenes", quiet=options.quiet)):
        image, boxes, names = make_scene(size, options.bits, np.random.default_rng(seed))
        path = folder / split / f"{index:05d}.png"
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        ignore = np.zeros(len(boxes), bool)
        recording = "synthetic-" + "-".join(map(str, seed))  # unique for each scene
        records.append(ImageRecord(path, size[1], size[0], boxes, names, ignore, recording=recording))
    return records


def _check(options: Options) -> tuple[int, int]:
    """Checks the options before anything is written; returns (height, width)."""
    words = options.size.lower().split("x")
    if len(words) != 2 or not all(word.strip().isdecimal() for word in words):
        raise UserError(f"--size must be height x width such as 256x320, got {options.size!r}")
    size = (int(words[0]), int(words[1]))
    if min(size) < 64 or max(size) > 4096:
        raise UserError(f"--size must lie between 64x64 and 4096x4096, got {options.size}")
    for name in ("images", "val_images", "video_frames", "seed"):
        if getattr(options, name) < 0:
            raise UserError(f"--{name} must be 0 or more, got {getattr(options, name)}")
    if options.stress and options.images == 0:
        raise UserError("--stress: nothing to make, because --images is 0")
    if options.images + options.val_images + options.video_frames == 0:
        raise UserError("nothing to make: --images, --val_images and --video_frames are all 0")
    out = Path(options.out)
    if options.stress:
        inputs = dataset_files(options.stress)
        cli.check_outputs([options.json], inputs)
        used = [*inputs, *(record.path for record in load_coco(str(options.stress)).records)]
        if any(out.resolve() in file.resolve().parents for file in used):
            raise UserError(
                f"--stress {options.stress}: it or an image of it lies in the folder that is replaced; "
                "give another --out"
            )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not options.overwrite:
            raise UserError(f"{out}: exists already; give a new folder or add --overwrite")
        if not (out / MARKER_FILE).is_file():
            raise UserError(
                f"{out}: not replaced, because it was not made by this command (it contains no {MARKER_FILE})"
            )
    return size


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to ``out`` when the block succeeds, and removed when it fails."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent, ignore_cleanup_errors=True) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        yield new
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``danet data synthesize``."""
    return cli.run(synthesize, Options, prog="danet data synthesize", positionals=["out"], argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
