"""Measures detection and training while other processes use all cores: python -m benchmarks.busy --json busy.json.

Every measurement starts a new command on a small video or dataset. "idle" runs it alone, "busy" beside one process per
core that computes without end. The settings of OpenMP take turns. The table gives medians, the rate beside busy cores
divided by the idle rate, and the idle rate divided by that of libgomp. "danet" is what the commands set
(``danet/utils/threads.py``), with fewer threads for the training beside busy cores; "libgomp" is the default of the
OpenMP library, "passive" is OMP_WAIT_POLICY=PASSIVE, both with all threads.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import header
from danet.data.synthetic.synthesize import Options as SceneOptions
from danet.data.synthetic.synthesize import synthesize
from danet.utils.threads import available_cores

SIZE = "256x320"
FRAMES = {"idle": 240, "busy": 60}
STEPS = {"idle": 24, "busy": 12}
BATCH = 4
WAITING = {"danet": {}, "libgomp": {"GOMP_SPINCOUNT": "300000"}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}


def detection_rate(folder: Path, load: str, variables: dict[str, str]) -> float:
    """Frames per second of ``danet detect`` on a video, without writing images."""
    out = ["--out", str(folder / "out"), "--overwrite", "--no-save-images", "--json", str(folder / "figures.json")]
    _danet(["detect", str(folder / f"{load}/video.mp4"), "--polarity", "white", "--quiet", *out], variables)
    figures = json.loads((folder / "figures.json").read_text())
    return figures["frames"] / figures["seconds"]


def training_rate(folder: Path, load: str, variables: dict[str, str]) -> float:
    """Images per second of ``danet train`` with danet_s on crops of 192 x 192."""
    out = ["--out", str(folder / "run"), "--overwrite", "--no-plots", "--json", str(folder / "figures.json")]
    size = ["--augmentation.crop", "192x192", "--batch", str(BATCH), "--epochs", "1", "--workers", "0", "--quiet"]
    _danet(["train", "--data", str(folder / f"{load}/train.json"), *size, *out], variables)
    figures = json.loads((folder / "figures.json").read_text())
    return figures["steps"] * BATCH / figures["seconds"]


RATES = {"detect, frames/s": detection_rate, "train, images/s": training_rate}


def _danet(words: list[str], variables: dict[str, str]) -> None:
    given = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment = {**given, "PYTHONPATH": str(Path(__file__).parents[1]), **variables}
    subprocess.run([sys.executable, "-W", "ignore", "-m", "danet", *words], env=environment, check=True)


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Keeps every core busy with one process."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(available_cores())]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind, 5 by default")
    parser.add_argument(
        "--spins",
        type=int,
        nargs="*",
        default=[],
        help="more values of GOMP_SPINCOUNT to compare",
    )
    parser.add_argument("--json", type=Path, help="write all rates to this JSON file")
    options = parser.parse_args(arguments)
    waiting = {**WAITING, **{f"spins {spins}": {"GOMP_SPINCOUNT": str(spins)} for spins in options.spins}}
    rates: dict[str, dict[str, dict[str, list[float]]]] = {
        task: {way: {"idle": [], "busy": []} for way in waiting} for task in RATES
    }
    with tempfile.TemporaryDirectory(prefix="danet-busy-") as name:
        folder = Path(name)
        for load, frames in FRAMES.items():
            images = STEPS[load] * BATCH
            out = str(folder / load)
            synthesize(SceneOptions(out, images=images, val_images=0, video_frames=frames, size=SIZE, quiet=True))
        for load in ("idle", "busy"):
            with busy_cores() if load == "busy" else contextlib.nullcontext():
                for _ in range(options.rounds):
                    for task, rate in RATES.items():
                        for way, variables in waiting.items():
                            rates[task][way][load].append(rate(folder, load, variables))
    for task, ways in rates.items():
        print(f"{task:<20}{'idle':>8}{'busy':>8}{'busy / idle':>14}{'idle / libgomp':>17}")
        for way, measured in ways.items():
            idle, busy = (statistics.median(measured[load]) for load in ("idle", "busy"))
            libgomp = statistics.median(ways["libgomp"]["idle"])
            print(f"  {way:<18}{idle:8.2f}{busy:8.2f}{busy / idle:14.2f}{idle / libgomp:17.2f}")
    if options.json is not None:
        content = {**header(), "rounds": options.rounds, "rates": rates}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
