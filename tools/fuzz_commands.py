"""Runs danet commands with damaged files and wrong options: python tools/fuzz_commands.py --cases 2000 --seed 1

Every case copies a small valid input (annotations, weights, a run folder, an image, a video, options), changes it at
random, and runs a command that reads it in a process of its own. The command must do one of three things: succeed,
refuse its input with a short message and exit code 2, or end with exit code 1 (column "fault": some files were skipped,
the disk is full, or the memory is exhausted). It fails the
case if it

- prints a traceback, or reports an unexpected error (an exception that DANet did not expect),
- is ended by a signal, for example by a segmentation fault,
- uses more than 20 seconds of CPU time, or does not end,
- leaves a file in its output folder that cannot be read, or a temporary file,
- changes a file of its copy of the input outside its output folder,
- prints more than a few lines of errors, a very long line or an escape character, or refuses without a message, or
- uses more than 3 GB of memory.

The exit code is 0 only if no case fails. ``--keep FOLDER`` keeps the folders of failed cases.
"""

import contextlib
import importlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import torch
from fuzz_inputs import Kind, Mutation, build_inputs, change_options
from whole_files import check_whole

from danet.__main__ import COMMANDS
from danet.__main__ import main as danet
from danet.utils import cli
from danet.utils.errors import UserError, check_values
from danet.utils.files import write_json
from danet.utils.guard import BUG_REPORT, run_guarded

CPU_LIMIT_S = 20
CLOCK_LIMIT_S = 300
MEMORY_LIMIT_BYTES = 3 << 30
ADDRESS_SPACE_BYTES = 16 << 30
MAX_ERROR_LINES = 8
BUG_EXIT_CODE = 70
"""Exit code of a process that could not even call the command."""
MAX_LINE_CHARACTERS = 1500
PROBLEMS = ("traceback", "unexpected", "signal", "hang", "unreadable output", "outside", "messages", "memory")
"""Ways to fail, in the order of the table."""
COLUMNS = ("cases", "accepted", "refused", "fault", *PROBLEMS, "CPU s")


@dataclass
class Options:
    """Options of tools/fuzz_commands.py."""

    cases: int = 2000
    """Number of cases, divided equally among the kinds of input."""

    seed: int = 0
    """Seed of the changes."""

    kinds: list[str] = field(default_factory=list)
    """Kinds of input, by the first column of the table; by default all."""

    jobs: int = 2
    """Commands that run at the same time."""

    labels: str | None = None
    """Folder with IR_DRONE_*.mp4 and their .mat files, for the kind mat; without it that kind is left out."""

    keep: str | None = None
    """Folder for the failed cases."""

    json: str | None = None
    """Also write the table to this file."""


@dataclass
class Case:
    """A command that was started."""

    number: int
    kind: Kind
    folder: Path
    command: list[str]
    files_before: dict[str, tuple[int, int]]
    """The files of the case outside its output folder, as ``_snapshot`` returns them."""
    deadline: float


def main() -> int:
    # Not cli.run: it redirects stderr of this process, and the commands, which are forked, must start as in a shell.
    # OpenCV reads this level when the first video is opened, which is here and not in the commands.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET, as the commands set it
    prog, about = "tools/fuzz_commands.py", run.__doc__ or ""
    return run_guarded(prog, lambda: run(cli.parse(Options, sys.argv[1:], prog=prog, about=about)))


def run(options: Options) -> int:
    """Runs danet commands with damaged files and wrong options."""
    check_values(options, ["cases", "jobs"], "be at least 1", lambda value: value >= 1, prefix="--")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    table: dict[str, Counter] = {}
    findings: list[dict] = []
    with tempfile.TemporaryDirectory(prefix="danet-fuzz-") as name:
        root = Path(name)
        kinds = build_inputs(root / "inputs", options.labels)
        names = [kind.name for kind in kinds]
        if unknown := [name for name in options.kinds if name not in names]:
            raise UserError(f"--kinds: {unknown[0]!r} is not one of {', '.join(names)}")
        chosen = [kind for kind in kinds if not options.kinds or kind.name in options.kinds]
        import_commands()
        check_inputs(chosen, root)
        running: dict[int, Case] = {}
        for number in range(options.cases):
            while len(running) >= options.jobs:
                _finish_one(running, table, findings, options.keep)
            kind = chosen[number % len(chosen)]
            pid, case = _start(number, kind, root, random.Random(f"{options.seed}/{number}"))
            running[pid] = case
        while running:
            _finish_one(running, table, findings, options.keep)
    _print_table(table)
    for finding in findings:
        print(f"case {finding['case']} ({finding['kind']}): {', '.join(finding['problems'])}\n  {finding['command']}")
        print(f"  {finding['message'][:600]}")
    if options.json is not None:
        rows = {name: {column: round(counts[column]) for column in COLUMNS} for name, counts in table.items()}
        write_json(options.json, {"cases": options.cases, "seed": options.seed, "table": rows, "findings": findings})
    return 1 if findings else 0


def import_commands() -> None:
    """Imports everything that the commands import, so that the process of a case starts at once."""
    for module, _ in COMMANDS.values():
        importlib.import_module(module)
    package = Path(cli.__file__).parents[1]
    for path in package.rglob("[!_]*.py"):
        importlib.import_module(".".join(path.relative_to(package.parent).with_suffix("").parts))
    for module in ("onnxruntime", "av", "matplotlib.pyplot", "faster_coco_eval", "matio", "rich.console"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def _start(number: int, kind: Kind, root: Path, rng: random.Random) -> tuple[int, Case]:
    """Copies and changes the input, and starts the command; returns its process id and the case."""
    folder = root / f"case{number}"
    work = folder / "work"
    shutil.copytree(root / "inputs" / kind.source, work)
    choice = rng.randrange(len(kind.commands))
    command = kind.commands[choice]
    if kind.mutations:
        path = rng.choice(sorted(work.glob(kind.file)))
        path.write_bytes(_changed(path.read_bytes(), kind.mutations, rng))
        command = [path.name if word == "FILE" else word for word in command]
    else:
        command = change_options(kind.options[choice], command, rng)
    files = _snapshot(folder, in_place=kind.in_place)
    return _fork(command, work), Case(number, kind, folder, command, files, time.monotonic() + CLOCK_LIMIT_S)


def _fork(command: list[str], work: Path) -> int:
    pid = os.fork()
    if pid == 0:
        _run_command(command, work)
    return pid


def check_inputs(kinds: list[Kind], root: Path) -> None:
    """Raises RuntimeError unless every command succeeds with the unchanged input: otherwise its cases test nothing."""
    for kind in kinds:
        for command in kind.commands:
            files = sorted((root / "inputs" / kind.source).glob(kind.file)) if "FILE" in command else [Path()]
            for file in files:
                words = [file.name if word == "FILE" else word for word in command]
                folder = root / "check"
                shutil.copytree(root / "inputs" / kind.source, folder / "work")
                _, status = os.waitpid(_fork(words, folder / "work"), 0)
                if status != 0:
                    raise RuntimeError(f"{kind.name}: {words} fails: {(folder / 'stderr').read_text()}")
                shutil.rmtree(folder)


def _changed(content: bytes, mutations: tuple[Mutation, ...], rng: random.Random) -> bytes:
    for _ in range(100):
        changed = rng.choice(mutations)(content, rng)
        if changed != content:
            return changed
    raise RuntimeError("no mutation changes the file")


def _run_command(command: list[str], work: Path) -> None:
    """Runs a danet command in this process, with limits, and ends the process."""
    code = BUG_EXIT_CODE
    try:
        os.chdir(work)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream, name in ((1, "../stdout"), (2, "../stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), stream)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_LIMIT_S, used + CPU_LIMIT_S + 5))
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
        try:
            code = danet(command)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _finish_one(running: dict[int, Case], table: dict[str, Counter], findings: list[dict], keep: str | None) -> None:
    """Waits for the next command that ends, and judges it."""
    while True:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid in running:
            break
        for each, case in running.items():
            if time.monotonic() > case.deadline:
                os.kill(each, signal.SIGKILL)
        time.sleep(0.002)
    case = running.pop(pid)
    code = os.waitstatus_to_exitcode(status)
    counts = table.setdefault(case.kind.name, Counter())
    counts["cases"] += 1
    counts["CPU s"] += usage.ru_utime + usage.ru_stime
    counts[{0: "accepted", 1: "fault", 2: "refused"}.get(code, "other")] += 1
    late = code == -signal.SIGKILL and time.monotonic() > case.deadline
    problems, message = judge(case, code, usage.ru_maxrss * 1024, late=late)
    for problem in problems:
        counts[problem.partition(":")[0]] += 1
    if problems:
        record = {"case": case.number, "kind": case.kind.name, "problems": problems, "code": code, "message": message}
        findings.append({**record, "command": " ".join(f"{word[:60]!a}" for word in case.command)})
        if keep is not None:
            shutil.copytree(case.folder, Path(keep) / f"case{case.number}", dirs_exist_ok=True)
    shutil.rmtree(case.folder)


def judge(case: Case, code: int, memory_bytes: int, *, late: bool = False) -> tuple[list[str], str]:
    """The problems of a command that has ended, each beginning with one of PROBLEMS, and the end of its stderr."""
    errors = (case.folder / "stderr").read_bytes().decode(errors="replace")
    printed = errors + (case.folder / "stdout").read_bytes().decode(errors="replace")
    problems = []
    if "Traceback (most recent call last)" in printed:
        problems.append("traceback")
    if BUG_REPORT in printed or (code not in (0, 1, 2) and code >= 0):
        problems.append("unexpected")
    if late or code == -signal.SIGXCPU:
        problems.append("hang")
    elif code < 0:
        problems.append(f"signal: {signal.Signals(-code).name}")
    lines = errors.splitlines()
    if len(lines) > MAX_ERROR_LINES or any(len(line) > MAX_LINE_CHARACTERS for line in lines) or "\x1b" in errors:
        problems.append(f"messages: {len(lines)} lines")
    if code == 2 and not lines:
        problems.append("messages: none")
    if memory_bytes > MEMORY_LIMIT_BYTES:
        problems.append(f"memory: {memory_bytes / 1e9:.1f} GB")
    if code >= 0:
        written = [case.folder / "out"] + ([case.folder / "work"] if case.kind.in_place else [])
        problems += [f"unreadable output: {each}" for folder in written for each in _unreadable(folder, case)]
    now = _snapshot(case.folder, in_place=case.kind.in_place)
    changed = sorted(
        name for name in case.files_before.keys() | now.keys() if case.files_before.get(name) != now.get(name)
    )
    problems += [f"outside: {name}" for name in changed[:3]]
    return problems, errors[-1500:]


def _snapshot(folder: Path, *, in_place: bool) -> dict[str, tuple[int, int]]:
    """Sizes and times of all files of a case that its command may not change: what it prints and writes is left out."""
    left_out = {folder / name for name in ("out", "stdout", "stderr", *(["work"] if in_place else []))}
    files = {}
    for name, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if Path(name, each) not in left_out]
        for path in (Path(name, each) for each in names):
            if path not in left_out:
                files[str(path.relative_to(folder))] = (path.lstat().st_size, path.lstat().st_mtime_ns)
    return files


def _unreadable(folder: Path, case: Case) -> Iterator[str]:
    """Files of an output folder that are temporary or cannot be read; the changed input itself is not judged."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.name.startswith("."):
            yield f"temporary file {path.name}"
        elif path.is_file() and not (case.kind.in_place and path.match(case.kind.file)):
            try:
                check_whole(path)
            except Exception as error:  # any problem is a finding
                yield f"{path.name} ({type(error).__name__}: {str(error)[:80]})"


def _print_table(table: dict[str, Counter]) -> None:
    print(f"| {'input':12} | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    total: Counter = Counter()
    for name, counts in table.items():
        total.update(counts)
        print(f"| {name:12} | {' | '.join(str(round(counts[column])) for column in COLUMNS)} |")
    print(f"| {'all':12} | {' | '.join(str(round(total[column])) for column in COLUMNS)} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
