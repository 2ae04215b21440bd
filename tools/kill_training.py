"""Kills trainings at random moments and checks that they resume: python tools/kill_training.py --kills 50 --seed 1

A small training on synthetic scenes runs once without interruption. The same training is then started again and again,
killed (SIGKILL) at a random moment, and resumed, until it has finished; further trainings follow until the number of
kills is reached. After every kill each file in the run folder must be whole. At the end of a training its logs must
equal those of the uninterrupted one byte for byte, and its weights and states bit for bit, without temporary files.
The exit code is 0 only if all of that holds.
"""

import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from whole_files import check_whole

from danet.data.synthetic.synthesize import Options as SceneOptions
from danet.data.synthetic.synthesize import synthesize
from danet.training.run_folder import BEST, CONFIG, LOCK, STATE, STEPS, VALIDATIONS, WEIGHTS
from danet.utils import cli
from danet.utils.files import write_json

TIMEOUT_S = 1800


@dataclass
class Options:
    """Options of tools/kill_training.py."""

    kills: int = 50
    """Number of kills."""

    seed: int = 0
    """Seed of the moments."""

    longest: float = 4.0
    """A process is killed at a uniformly random moment, after at most this CPU time in seconds since it has locked the
    folder. CPU time does not depend on the load of the machine."""

    workers: int = 0
    """Loader processes of the trainings."""

    epochs: int = 30
    """Epochs of a training; every second one is validated."""

    json: str | None = None
    """Also write the table to this file."""

    quiet: bool = False
    """Print only the table."""


@dataclass
class Campaign:
    """What was killed, and what was wrong afterwards."""

    kills: int = 0
    trainings: int = 0
    exact: int = 0
    """Finished trainings whose logs, weights and states equal those of the uninterrupted one."""
    moments: Counter = field(default_factory=Counter)
    """Kills by what the run folder held: nothing yet, a state, a validation."""
    temporary_files: int = 0
    """Kills in the middle of writing, which left a temporary file; the next process removes it."""
    broken_files: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def main() -> int:
    return cli.run(run, Options, prog="tools/kill_training.py")


def run(options: Options) -> int:
    """Kills trainings at random moments and checks that they resume exactly."""
    moments, campaign = random.Random(options.seed), Campaign()
    with tempfile.TemporaryDirectory(prefix="danet-kills-") as name:
        folder = Path(name)
        synthesize(SceneOptions(str(folder / "data"), images=16, val_images=8, size="64x64", quiet=True))
        whole = folder / "whole"
        _wait(_start(_command(folder, whole, options)))
        while campaign.kills < options.kills:
            killed = folder / f"killed{campaign.trainings}"
            _train_with_kills(folder, killed, options, moments, campaign)
            different = differences(whole, killed)
            campaign.trainings += 1
            campaign.exact += not different
            campaign.differences += different
            if not options.quiet:
                print(f"{campaign.kills} kills, {campaign.trainings} trainings, {campaign.exact} exact", flush=True)
    table = {**vars(campaign), "moments": dict(campaign.moments)}
    for key, value in table.items():
        print(f"{key.replace('_', ' '):16} {value}")
    if options.json is not None:
        write_json(options.json, {**table, "options": asdict(options)})
    return 0 if campaign.exact == campaign.trainings > 0 and not campaign.broken_files else 1


def _train_with_kills(folder: Path, out: Path, options: Options, moments: random.Random, campaign: Campaign) -> None:
    """Starts and kills one training until it has finished; after the last kill it runs to its end."""
    while True:
        resume = (out / CONFIG).is_file()
        command = _command(folder, out, options) if not resume else [*PROGRAM, "--resume", str(out)]
        process = _start(command)
        if campaign.kills >= options.kills or not _runs_for(process, out, moments.uniform(0, options.longest)):
            _wait(process)
            return
        process.send_signal(signal.SIGKILL)
        process.wait()
        campaign.kills += 1
        campaign.moments[_moment(out)] += 1
        campaign.temporary_files += any(path.name != LOCK for path in out.glob(".*"))
        campaign.broken_files += [f"kill {campaign.kills}: {problem}" for problem in broken_files(out)]


PROGRAM = [sys.executable, "-W", "ignore", "-m", "danet.train"]


def _command(folder: Path, out: Path, options: Options) -> list[str]:
    words = ["--data", str(folder / "data/train.json"), "--val", str(folder / "data/val.json"), "--out", str(out)]
    words += ["--model.name", "danet_nano", "--augmentation.crop", "64x64", "--batch", "4", "--adcr.weight", "0.1"]
    words += ["--epochs", str(options.epochs), "--val_every", "2", "--save_every_steps", "3"]
    return [*PROGRAM, *words, "--workers", str(options.workers), "--threads", "1", "--quiet"]


def _start(command: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(command, env=environment)


def _wait(process: subprocess.Popen) -> None:
    if process.wait(timeout=TIMEOUT_S):
        raise RuntimeError(f"{process.args} ended with code {process.returncode}")


def _runs_for(process: subprocess.Popen, out: Path, seconds: float) -> bool:
    """Waits until a training has used this CPU time since it locked its folder; False if it ended before."""
    locked_at = None
    while process.poll() is None:
        used = _cpu_seconds(process.pid)
        if locked_at is None and _holds_lock(out, process.pid):
            locked_at = used
        if locked_at is not None and used - locked_at >= seconds:
            return True
        time.sleep(0.002)
    return False


def _cpu_seconds(process: int) -> float:
    """CPU time of a process and its threads, in hundredths of a second."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _holds_lock(out: Path, process: int) -> bool:
    try:
        return (out / LOCK).read_text().strip() == str(process)
    except OSError:
        return False


def _moment(out: Path) -> str:
    if not (out / STATE).is_file():
        return "before the first state"
    return "after a validation" if (out / BEST).is_file() else "before the first validation"


def broken_files(out: Path) -> list[str]:
    """What is wrong with the files of a killed training; the last line of a log may be incomplete."""
    problems = []
    for path in out.iterdir():
        if path.name.startswith("."):
            continue
        try:
            if path.suffix == ".csv":
                head, *rows = csv.reader(path.read_text().rpartition("\n")[0].splitlines() or ["empty"])
                assert all(len(row) == len(head) for row in rows)
                continue
            check_whole(path)
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    assert file.metadata()["header"]
            elif path.suffix == ".yaml":
                assert yaml.safe_load(path.read_text())["data"]
        except Exception as error:  # any problem is a finding
            problems.append(f"{path.name}: {type(error).__name__} {error}")
    return problems


def differences(whole: Path, killed: Path) -> list[str]:
    """What differs between an uninterrupted training and one that was killed and resumed."""
    found = [
        f"{killed.name}/{name} differs"
        for name in (STEPS, VALIDATIONS)
        if (whole / name).read_bytes() != (killed / name).read_bytes()
    ]
    for name in (STATE, BEST, WEIGHTS):
        expected, resumed = load_file(whole / name), load_file(killed / name)
        if expected.keys() != resumed.keys() or not all(torch.equal(expected[key], resumed[key]) for key in expected):
            found.append(f"{killed.name}/{name} differs")
    left = [path.name for path in killed.iterdir() if path.name.startswith(".")]
    names = {path.name for path in whole.iterdir()} ^ {path.name for path in killed.iterdir()}
    return [
        *found,
        *(f"{killed.name}: temporary file {name}" for name in left),
        *(f"{name}: only in one" for name in names),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
