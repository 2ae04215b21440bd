"""Measures the memory of long runs: python -m benchmarks.long_run --json long_run.json.

Ten hours of video at 30 frames/s are 1,080,000 frames. Two parts stand for them:

- results: so many frames of generated detections go through the tracker, the alarms, a delivery and all files. Targets
  come and go, so that each part creates and forgets thousands of tracks and alarms.
- command: ``danet track`` itself, with danet_nano, an annotated video and a client of the live preview, on a video of
  small frames.

Both record the resident memory (RSS) over time. Growth is the difference between the medians of the last tenth of the
samples and of the third tenth, after everything has been allocated once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import header
from danet.boxes import Detections
from danet.checkpoint import save_weights
from danet.config import ModelConfig
from danet.data.video import Frame
from danet.data.video_writer import VideoWriter
from danet.inference.detector import Detector
from danet.models import build_model
from danet.tracking.alarm_output import AlarmOutput
from danet.tracking.alarms import Alarms
from danet.tracking.delivery import Delivery
from danet.tracking.track_files import TrackFiles
from danet.tracking.tracker import Tracker
from danet.tracking.tracker_options import TrackerOptions
from danet.utils.files import write_json

FPS = 30.0
SIZE = 64, 96
SAMPLES = 200
BIRTHS_PER_FRAME = 1 / 400
LIFE_FRAMES = 60, 200
MISS_PROBABILITY = 0.1
FALSE_ALARMS_PER_FRAME = 0.03
DETECTIONS_PER_FRAME = 4
"""About so many detections per frame, of the random weights of danet_nano, are used by the tracker of "command"."""


class Targets:
    """Generates the detections of targets that appear, fly straight on and vanish, with misses and false alarms."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._states: list[list[float]] = []  # x, y, their speeds per frame, remaining frames

    def next(self) -> Detections:
        """The detections of the next frame."""
        rng = self._rng
        if rng.random() < BIRTHS_PER_FRAME:
            place, speed = rng.uniform([10, 10], [SIZE[1] - 10, SIZE[0] - 10]), rng.normal(0, 0.15, 2)
            self._states.append([*place, *speed, float(rng.integers(*LIFE_FRAMES))])
        centres, scores = [], []
        for state in self._states:
            state[0], state[1], state[4] = state[0] + state[2], state[1] + state[3], state[4] - 1
            if rng.random() > MISS_PROBABILITY:
                centres.append((state[0] + rng.normal(0, 0.3), state[1] + rng.normal(0, 0.3)))
                scores.append(rng.uniform(0.5, 0.95))
        self._states = [state for state in self._states if state[4] > 0]
        if rng.random() < FALSE_ALARMS_PER_FRAME:
            centres.append((rng.uniform(0, SIZE[1]), rng.uniform(0, SIZE[0])))
            scores.append(rng.uniform(0.1, 0.5))
        middle = torch.tensor(centres, dtype=torch.float32).reshape(-1, 2)
        half = torch.tensor([3.0, 2.0])
        boxes = torch.cat([middle - half, middle + half], 1)
        return Detections(boxes, torch.tensor(scores), torch.zeros(len(scores), dtype=torch.int64), ["drone"])


def run_results(frames: int, folder: Path, *, samples: int = SAMPLES) -> dict:
    """Sends generated detections through tracker, alarms, delivery and files; the memory over the frames."""
    targets, tracker, alarms = Targets(), Tracker(TrackerOptions(camera_motion=False)), Alarms()
    image = np.random.default_rng(0).integers(60, 120, SIZE).astype(np.uint8)
    tracker.begin_source(["drone"])
    memory, started = [], time.perf_counter()
    with (
        TrackFiles(folder / "tracks.csv", folder / "tracks.jsonl") as files,
        AlarmOutput(folder, [Delivery("receiver", len)]) as alarm_output,
        files.source(folder / "clip.txt"),
    ):
        for index in range(frames):
            frame = Frame("clip.mp4", index, image, index / FPS)
            tracks = tracker.update(targets.next(), seconds=frame.time)
            files.add(frame, tracks)
            alarm_output.add(alarms.update_frame(frame, tracks))
            if index % max(1, frames // samples) == 0:
                memory.append([index, resident_mib(os.getpid())])
        alarm_output.add(alarms.finish())
    seconds = time.perf_counter() - started
    counts = {"frames": frames, "tracks": sum(files.ids.values()), "alarms": alarms.started, "seconds": seconds}
    return {**counts, **summary([mib for _, mib in memory]), "memory": memory, "unit": "[frame, MiB]"}


def run_command(frames: int, folder: Path) -> dict:
    """Runs ``danet track`` on a generated video with a client of the live preview; the memory over the seconds."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="danet_nano", classes=["drone"]))
    save_weights(folder / "nano.safetensors", model)
    rng = np.random.default_rng(0)
    scene = rng.normal(90, 5, SIZE)
    with VideoWriter(folder / "clip.avi", fps=FPS, codec="MJPG") as writer:
        for index in range(frames):
            image = scene + rng.normal(0, 1)
            x = index // 2 % (SIZE[1] - 10)
            image[30:36, x : x + 8] += 100
            writer.write(np.clip(image, 0, 255).astype(np.uint8))
    # The scores of random weights are low and close to each other: take a threshold between them.
    detector = Detector(model, score_threshold=0.0, polarity="white", dtype=torch.float32)
    score = float(detector(np.clip(image, 0, 255).astype(np.uint8)).scores[DETECTIONS_PER_FRAME])
    thresholds = [word for name in ("high", "low", "neutral") for word in (f"--tracker.{name}_score", f"{score:.6f}")]
    words = ["--weights", str(folder / "nano.safetensors"), "--out", str(folder / "out"), "--upscale", "1"]
    words += ["--tracker.confirm", "0.5", "--dtype", "float32", "--polarity", "white"]
    words += ["--video_format", "mp4", "--serve", "0", "--json", str(folder / "figures.json"), *thresholds]
    command = [sys.executable, "-u", "-m", "danet", "track", str(folder / "clip.avi"), *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    url = next(line for line in process.stdout if line.startswith("live preview at ")).split()[-1]
    received = [0]

    def read() -> None:
        with urllib.request.urlopen(f"{url}stream.mjpg", timeout=60) as stream:
            while part := stream.read(1 << 16):
                received[0] += len(part)

    threading.Thread(target=read, daemon=True).start()
    threading.Thread(target=process.stdout.read, daemon=True).start()
    memory, started = [], time.perf_counter()
    while process.poll() is None:
        memory.append([round(time.perf_counter() - started, 1), resident_mib(process.pid)])
        time.sleep(1)
    if process.returncode != 0:
        raise SystemExit(f"danet track ended with exit code {process.returncode}")
    figures = json.loads((folder / "figures.json").read_text())
    counts = {name: figures[name] for name in ("frames", "targets", "alarms", "seconds")}
    memory = [[seconds, mib] for seconds, mib in memory if mib > 0]
    return {
        **counts,
        "preview_bytes": received[0],
        **summary([mib for _, mib in memory]),
        "memory": memory,
        "unit": "[second, MiB]",
    }


def resident_mib(process: int) -> float:
    """Resident memory of a process in MiB; 0 after its end."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 2)


def summary(memory: Sequence[float]) -> dict[str, float]:
    """Growth and maximum of samples in MiB.

    Example:
        >>> summary([10.0, 20.0, 30.0, 30.0, 30.0, 31.0, 31.0, 31.0, 31.0, 32.0])
        {'growth_mib': 2.0, 'maximum_mib': 32.0}
    """
    tenth = max(1, len(memory) // 10)
    early, late = memory[2 * tenth : 3 * tenth] or memory[:1], memory[-tenth:]
    return {"growth_mib": round(statistics.median(late) - statistics.median(early), 2), "maximum_mib": max(memory)}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_run", description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=1_080_000, help="frames of the part results, or 0")
    parser.add_argument("--command_frames", type=int, default=40_000, help="frames of the part command, or 0")
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    options = parser.parse_args(argv)
    content: dict = {"machine": header()}
    parts = {"command": (run_command, options.command_frames), "results": (run_results, options.frames)}
    for name, (run, frames) in parts.items():
        if frames:
            with tempfile.TemporaryDirectory() as folder:
                content[name] = part = run(frames, Path(folder))
            if not options.quiet:
                print(
                    f"{name}: {part['frames']} frames in {part['seconds']:.0f} s, growth {part['growth_mib']:.1f} MiB, "
                    f"maximum {part['maximum_mib']:.0f} MiB",
                    flush=True,
                )
            if options.json:
                write_json(options.json, content)


if __name__ == "__main__":
    main()
