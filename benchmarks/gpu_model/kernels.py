"""Compiles the CUDA kernels and runs them, as machine code, in place of the emulator."""

import fcntl
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_model.machine import Launch, Machine, Record
from benchmarks.gpu_model.memory import ProcessMemory
from benchmarks.gpu_model.sass import Function, functions

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build/gpu_model"
"""Where compiled kernels are kept by default."""
for folder in ("tests", "build_tools"):  # the emulator, and the search for nvcc
    sys.path.insert(0, str(ROOT / folder))
from backend import nvcc  # noqa: E402
from cuda_tools import cuobjdump  # noqa: E402
from emulation.emulated import Emulation, KernelLaunch, load  # noqa: E402

del sys.path[:2]

ARCHITECTURE = "90"
RESOURCES = re.compile(r"Function (\S+):\s*\n?\s*REG:(\d+) STACK:\d+ SHARED:(\d+)")


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: its machine code, registers per thread, and bytes of static shared memory."""

    function: Function
    registers: int
    shared_bytes: int


def compile_cubin(source: Path, folder: Path, flags: tuple[str, ...] = (), architecture: str = ARCHITECTURE) -> Path:
    """Compile one CUDA source, unless the folder has an up-to-date result.

    A result is up to date if the command and the compiler are the same, and the content of every file that the compiler
    read. The record of them lies beside the cubin.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{source.stem}.sm_{architecture}"
    cubin, dependencies, record = (folder / f"{name}.{end}" for end in ("cubin", "d", "json"))
    include = Path(torch.__path__[0]) / "include"
    options = ["-std=c++17", "-O3", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", *flags]
    arguments = [*options, "-cubin", f"-arch=sm_{architecture}", "-isystem", include, source, "-o", cubin]
    command = [str(value) for value in (nvcc(), *arguments, "-MD", "-MF", dependencies)]
    compiler = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=True).stdout
    facts = {"command": command, "compiler": compiler}
    with open(folder / f"{name}.lock", "w") as lock:  # other processes may compile the same source
        fcntl.flock(lock, fcntl.LOCK_EX)
        if cubin.exists() and record.exists():
            stored = json.loads(record.read_text())
            if stored == {**facts, "files": _digests(stored["files"])}:
                return cubin
        record.unlink(missing_ok=True)
        subprocess.run(command, check=True)
        # The compiler lists the files as a rule of make: "target : file file \\ file".
        files = dependencies.read_text().partition(" : ")[2].replace("\\\n", " ").split()
        record.write_text(json.dumps({**facts, "files": _digests(files)}))
    return cubin


def _digests(files: Iterable[str]) -> dict[str, str]:
    """A hash of the content of every file; empty for a file that no longer exists."""
    return {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() if Path(name).exists() else "" for name in files}


class Cubin:
    """The kernels of one cubin."""

    def __init__(self, path: Path) -> None:
        tool = cuobjdump()
        if tool is None:
            raise RuntimeError("gpu_model: cuobjdump is missing; install the package nvidia-cuda-cuobjdump")
        self._functions = functions(path, tool)
        usage = subprocess.run(["cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True, **tool)
        self._usage = {name: tuple(map(int, rest)) for name, *rest in RESOURCES.findall(usage.stdout)}

    @cached_property
    def kernels(self) -> dict[str, Kernel]:
        """The kernels by `plain_name`."""
        mangled = list(self._functions)
        names = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
        found = {}
        for name, readable in zip(mangled, names.stdout.splitlines(), strict=True):
            registers, shared = self._usage[name]
            # The listing counts the bytes that the system reserves.
            found[plain_name(readable)] = Kernel(self._functions[name], registers, max(0, shared - 1024))
        return found


def plain_name(name: str) -> str:
    """A kernel's name with its template arguments, equal for g++ and nvcc."""
    name = re.sub(r"\(anonymous namespace\)|_GLOBAL__N__\w+|_INTERNAL_\w+", "", name)
    name = name.replace("danet::", "").replace("::", "").removeprefix("void ")
    name = re.sub(r"\((bool|int)\)(\d+)", lambda m: m[2] if m[1] == "int" else str(bool(int(m[2]))).lower(), name)
    name = name.replace("unsigned long", "size_t")
    depth = 0
    for place, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return name[:place].strip()
    return name.strip()


def process_memory() -> ProcessMemory:
    """The writable memory of this process."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode = line.split()[:2]
        if mode.startswith("rw"):
            begin, end = (int(value, 16) for value in span.split("-"))
            if end < 1 << 47:
                ranges.append((begin, end))
    return ProcessMemory(ranges)


@dataclass
class Execution:
    """One launch that the interpreter executed, for the given blocks."""

    launch: Launch
    kernel: Kernel
    blocks: np.ndarray
    record: Record


class MachineCode:
    """Runs launches of the emulated operators on the machine code of the kernels.

    Args:
        cubins: the compiled kernels.
        multiprocessors: the number of multiprocessors that the kernels see.
    """

    def __init__(self, cubins: list[Path], multiprocessors: int = 132) -> None:
        self.kernels: dict[str, Kernel] = {}
        for path in cubins:
            self.kernels |= Cubin(path).kernels
        self.multiprocessors = multiprocessors

    @property
    def emulation(self) -> Emulation:
        """The emulator, whose operators are torch.ops.danet_emulated.*. Its mode does not matter."""
        return load()

    @contextmanager
    def running(self, choose: Callable[[Launch], np.ndarray] | None = None) -> Iterator[list[Execution]]:
        """Inside the block, the emulated operators run on machine code. Gives the list of their executions.

        Args:
            choose: the blocks of a launch to execute; all by default. The results are then incomplete.
        """
        executions: list[Execution] = []

        def observe(record: KernelLaunch) -> bool:
            sizes = record.grid, record.block, record.shared_bytes
            launch = Launch(plain_name(record.kernel), *sizes, record.parameters, record.cluster, record.programmatic)
            kernel = self.kernels[launch.kernel]
            blocks = np.arange(launch.blocks) if choose is None else choose(launch)
            machine = Machine(kernel.function, launch, blocks, process_memory(), kernel.shared_bytes)
            executions.append(Execution(launch, kernel, blocks, machine.run()))
            return True

        self.emulation.settings.multiprocessors = self.multiprocessors
        try:
            with self.emulation.observed(observe):
                yield executions
        finally:
            self.emulation.settings.multiprocessors = 4
