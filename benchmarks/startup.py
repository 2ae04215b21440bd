"""Measures how long commands take until they answer, and what danet.ops adds to torch: python -m benchmarks.startup."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = {
    "python": ["-c", ""],
    "danet --help": ["-m", "danet", "--help"],
    "danet train --help": ["-m", "danet", "train", "--help"],
    "danet detect missing.mp4": ["-m", "danet", "detect", "missing.mp4"],
    "import danet": ["-c", "import danet"],
    "import torch": ["-c", "import torch"],
    "import danet.ops": ["-c", "import danet.ops"],
}

AFTER_TORCH = """
import time
import torch
started = time.perf_counter()
import danet.ops
print(time.perf_counter() - started)
"""


def seconds(arguments: list[str]) -> float:
    """Wall time of one new Python process."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    elapsed = time.perf_counter() - started
    if (done.returncode != 0) != ("missing.mp4" in arguments):  # only this one has to fail
        raise SystemExit(f"benchmarks.startup: {' '.join(arguments)} ended with exit code {done.returncode}")
    return elapsed


def seconds_after_torch() -> float:
    """Wall time of ``import danet.ops`` in a new process that has imported torch."""
    return float(subprocess.run([sys.executable, "-c", AFTER_TORCH], capture_output=True, text=True, check=True).stdout)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="processes of each kind, 5 by default")
    parser.add_argument("--json", type=Path, help="write the measured times to this JSON file")
    options = parser.parse_args(arguments)
    times: dict[str, list[float]] = {name: [] for name in (*PROGRAMS, "import danet.ops after torch")}
    for _ in range(options.repeats):  # in turns, because the speed of a shared machine changes
        for name, words in PROGRAMS.items():
            times[name].append(seconds(words))
        times["import danet.ops after torch"].append(seconds_after_torch())
    for name, measured in times.items():
        print(f"{name:<30}{statistics.median(measured):6.2f} s")
    if options.json is not None:
        options.json.write_text(json.dumps(times, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
