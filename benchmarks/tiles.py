"""Measures tracking in tiles of large frames: python -m benchmarks.tiles --json tiles.json.

A generated video goes through ``detector.stream`` with the shipped weights and a tracker, as in ``danet track --tile
320 --save_images false``: decoding, preprocessing, network, merging of tiles, and tracking with the camera's motion.
The number of targets is set: the tracker states so many places, around which the frames between two complete searches
are searched.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

import danet
from benchmarks.detector import size_of
from benchmarks.timing import header
from danet.data.video_writer import VideoWriter
from danet.tracking.tracker import Tracker
from danet.utils.files import write_json
from danet.utils.malloc import share_malloc_arena, tune_malloc

FPS = 30.0
TARGET_PIXELS = 12.0, 8.0
"""Width and height of a target."""


class PlacedTracker(Tracker):
    """A tracker whose targets stay at given places.

    Args:
        places: float ``[M, 2]`` (x, y) in pixels.
    """

    def __init__(self, places: np.ndarray) -> None:
        super().__init__()
        half = np.array(TARGET_PIXELS) / 2
        self._boxes = np.concatenate([places - half, places + half], 1)

    @property
    def followed_boxes(self) -> np.ndarray:
        return self._boxes


def write_clip(path: Path, size: tuple[int, int], frames: int) -> None:
    """Writes a video of drifting clouds with the noise of a sensor."""
    rng, (height, width) = np.random.default_rng(0), size
    clouds = cv2.resize(rng.normal(100, 12, (height // 60 + 2, width // 60 + 8)), None, fx=60, fy=60)
    clouds = clouds.astype(np.float32)
    with VideoWriter(path, fps=FPS) as writer:
        for index in range(frames):
            image = clouds[:height, index : index + width] + rng.integers(-2, 3, size, dtype=np.int8)
            writer.write(np.clip(image, 0, 255).astype(np.uint8))


def measure(detector: "danet.Detector", clip: Path, *, targets: int, every: int, size: tuple[int, int]) -> dict:
    """Frames per second over a clip, and the milliseconds of its slowest frame."""
    rng = np.random.default_rng(1)
    tracker = PlacedTracker(rng.uniform([0, 0], size[::-1], (targets, 2)))
    ends = [time.perf_counter()]
    for _ in detector.stream(clip, tracker=tracker, tile_every=every):
        ends.append(time.perf_counter())
    steps = np.diff(ends)
    return {"frames_per_s": len(steps) / float(steps.sum()), "slowest_frame_ms": 1e3 * float(steps.max())}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiles", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--sizes", nargs="+", type=size_of, default=[(1080, 1920)], metavar="HEIGHTxWIDTH", help="of the frames"
    )
    parser.add_argument("--tile", type=int, default=320, help="side of the tiles in pixels")
    parser.add_argument("--every", type=int, nargs="+", default=[10, 5, 1], help="frames between complete searches")
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 4], help="number of targets")
    parser.add_argument("--frames", type=int, default=60, help="frames of each measurement")
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    options = parser.parse_args(argv)
    share_malloc_arena()
    tune_malloc()
    # One polarity, as a run has once it is decided on its first frames.
    detector = danet.load(polarity="white", tile=options.tile)
    cases = []
    for size in sorted(options.sizes):
        with tempfile.TemporaryDirectory() as folder:
            clip = Path(folder) / "clip.mp4"
            write_clip(clip, size, options.frames)
            for every in options.every:
                for targets in options.targets:
                    tiles = len(detector.tiling.grid(*size)) if detector.tiling else 0
                    case = {"size": size, "tiles": tiles, "every": every, "targets": targets}
                    case |= measure(detector, clip, targets=targets, every=every, size=size)
                    case["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                    cases.append(case)
                    if not options.quiet:
                        print(
                            f"{size[1]} x {size[0]}, complete every {every} frames, {targets} targets: "
                            f"{case['frames_per_s']:.1f} frames/s, slowest frame {case['slowest_frame_ms']:.0f} ms, "
                            f"peak memory {case['peak_memory_mib']:.0f} MiB",
                            flush=True,
                        )
    if options.json:
        write_json(options.json, {"machine": header(), "tile": options.tile, "cases": cases})


if __name__ == "__main__":
    main()
