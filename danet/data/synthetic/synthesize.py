"""``danet data synthesize``: infrared scenes with drones and what is taken for them, as COCO json and images."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from danet.data.coco_dataset import ImageRecord, write_coco
from danet.data.summary import write_summary
from danet.data.synthetic.clip import write_video
from danet.data.synthetic.scene import CATEGORIES, make_scene
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.files import write_text
from danet.utils.progress import track

# The file that marks a folder as made by this command.
MARK = "synthesize.yaml"


@dataclass
class Options:
    """What to make."""

    out: str
    """Folder to write: train.json, val.json, train/, val/, video.json, video.mp4, video/."""

    images: int = 400
    """Number of training scenes."""

    val_images: int = 100
    """Number of validation scenes; none shares its background with a training scene."""

    video_frames: int = 0
    """Frames of a video (30 frames a second) with drones and birds in flight; 0 makes none."""

    size: str = "256x320"
    """Height x width of the images in pixels, at least 64x64."""

    bits: Literal[8, 16] = 8
    """Bits a pixel: 8 as video cameras give, or 16 holding a sensor's 14-bit counts."""

    seed: int = 0
    """The same seed gives the same files; every scene depends on the seed and its number alone."""

    overwrite: bool = False
    """Replace a folder that an earlier run of this command made."""

    json: str | None = None
    """Write the number of images and boxes of each json to this file."""

    quiet: bool = False
    """Print nothing but errors."""


def synthesize(options: Options) -> None:
    """Makes synthetic infrared scenes: drones of 3 to 60 pixels, and birds, leaves, hot building corners and airplanes
    as labelled distractors."""
    size = _check(options)
    out = Path(options.out)
    try:
        with _new_folder(out) as folder:
            written = _write(folder, size, options)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error
    write_summary({out / name: records for name, records in written.items()}, json=options.json, quiet=options.quiet)


def _write(folder: Path, size: tuple[int, int], options: Options) -> dict[str, list[ImageRecord]]:
    """Writes everything; returns the records of each json."""
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
    write_text(folder / MARK, cli.dump(options))
    return written


def _write_scenes(
    folder: Path, split: str, seeds: Sequence[tuple[int, ...]], size: tuple[int, int], options: Options
) -> list[ImageRecord]:
    (folder / split).mkdir()
    records = []
    for index, seed in enumerate(track(seeds, f"making {split} scenes", quiet=options.quiet)):
        image, boxes, names = make_scene(size, options.bits, np.random.default_rng(seed))
        path = folder / split / f"{index:05d}.png"
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        ignore = np.zeros(len(boxes), bool)
        recording = "synthetic-" + "-".join(map(str, seed))  # another seed, another scene
        records.append(ImageRecord(path, size[1], size[0], boxes, names, ignore, recording=recording))
    return records


def _check(options: Options) -> tuple[int, int]:
    """The size as numbers; raises UserError for what cannot be done, before anything is written."""
    words = options.size.lower().split("x")
    if len(words) != 2 or not all(word.strip().isdecimal() for word in words):
        raise UserError(f"--size must be height x width such as 256x320, got {options.size!r}")
    size = (int(words[0]), int(words[1]))
    if min(size) < 64 or max(size) > 4096:
        raise UserError(f"--size must lie between 64x64 and 4096x4096, got {options.size}")
    for name in ("images", "val_images", "video_frames", "seed"):
        if getattr(options, name) < 0:
            raise UserError(f"--{name} must be 0 or more, got {getattr(options, name)}")
    if options.images + options.val_images + options.video_frames == 0:
        raise UserError("nothing to make: --images, --val_images and --video_frames are all 0")
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not options.overwrite:
            raise UserError(f"{out}: exists already; name a new folder or add --overwrite")
        if not (out / MARK).is_file():
            raise UserError(f"{out}: not replaced, since it was not made by this command (no {MARK} in it)")
    return size


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``out`` that takes its name when the block succeeds; else nothing remains."""
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
    """``danet data synthesize``."""
    return cli.run(synthesize, Options, prog="danet data synthesize", positionals=["out"], argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
