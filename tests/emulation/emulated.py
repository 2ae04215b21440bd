"""Builds the CUDA emulator (README.md), and loads it as torch.ops.danet_emulated."""

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

MODES = ("plain", "sanitize", "check")
SOURCE = Path(__file__).parent
ROOT = SOURCE.parents[1]


def _tool(name: str) -> str | None:
    """The path of an executable on the PATH or beside this Python, or None."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def missing() -> str | None:
    """The reason why this machine cannot build the emulator, or None."""
    absent = [tool for tool in ("cmake", "ninja", "g++") if _tool(tool) is None]
    return f"the CUDA emulator needs {', '.join(absent)}" if absent else None


def build(mode: str, target: str) -> Path:
    """Build a target, "libdanet_emulated" or "seeded", in one of MODES; return its path."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    folder = ROOT / "build" / f"emulation-{mode}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        torch_dir = torch.__path__[0]
        configure = [
            _tool("cmake"),
            "-S",
            SOURCE,
            "-B",
            folder,
            "-G",
            "Ninja",
            f"-DMODE={mode}",
            f"-DTORCH_DIR={torch_dir}",
        ]
        _run([*configure, "-DCMAKE_CXX_COMPILER=g++", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"])
        _run([_tool("cmake"), "--build", folder, "--target", target, "--parallel", str(os.cpu_count() or 1)])
    return folder / (f"{target}.so" if target.startswith("lib") else target)


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout}")


@dataclass(frozen=True)
class KernelLaunch:
    """One kernel launch: the operator, the kernel's demangled name, the sizes, and the bytes of its arguments as they
    lie in constant memory."""

    op: str
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    parameters: bytes


class _Dim3(ctypes.Structure):
    _fields_ = [(axis, ctypes.c_uint) for axis in "xyz"]

    def sizes(self) -> tuple[int, int, int]:
        return self.x, self.y, self.z


class _Record(ctypes.Structure):
    _fields_ = [
        ("op", ctypes.c_char_p),
        ("kernel", ctypes.c_void_p),
        ("grid", _Dim3),
        ("block", _Dim3),
        ("shared_bytes", ctypes.c_size_t),
        ("parameters", ctypes.c_void_p),
        ("parameter_bytes", ctypes.c_size_t),
    ]


_Observer = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(_Record))


class Emulation:
    """The loaded emulator. Its operators are torch.ops.danet_emulated.*, on CPU tensors."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.library = build(mode, "libdanet_emulated")
        torch.ops.load_library(self.library)
        self._c = ctypes.CDLL(str(self.library))
        self._c.emulation_set_seed.argtypes = self._c.emulation_set_shared_limit.argtypes = [ctypes.c_uint64]
        self._c.emulation_launches.restype = self._c.emulation_offset.restype = ctypes.c_uint64
        self._c.emulation_set_multiprocessors.argtypes = [ctypes.c_int]
        self._c.emulation_set_observer.argtypes = self._c.emulation_offset.argtypes = [ctypes.c_void_p]
        self._c.emulation_take_reports.restype = ctypes.c_char_p
        self._reports: list[str] = []

    def seed(self, seed: int) -> None:
        """Set the order of blocks and threads. 0: ascending, 1: descending, others: random."""
        self._c.emulation_set_seed(seed)

    def shared_limit(self, size: int) -> None:
        """Set the maximum shared memory per block, in bytes. The default is 227 KiB."""
        self._c.emulation_set_shared_limit(size)

    def multiprocessors(self, count: int) -> None:
        """Set the number of multiprocessors, by which kernels choose their grids. The default is 4."""
        self._c.emulation_set_multiprocessors(count)

    @contextmanager
    def observed(self, observer: Callable[[KernelLaunch], bool]) -> Iterator[None]:
        """Inside the block, call `observer` before every launch. If it returns true, the kernel does not run.

        An exception of the observer is raised at the end of the block.
        """
        errors: list[BaseException] = []

        def call(pointer) -> bool:
            record = pointer.contents
            try:
                return observer(
                    KernelLaunch(
                        record.op.decode(),
                        self._kernel_names[self._c.emulation_offset(record.kernel)],
                        record.grid.sizes(),
                        record.block.sizes(),
                        record.shared_bytes,
                        ctypes.string_at(record.parameters, record.parameter_bytes),
                    )
                )
            except BaseException as error:
                errors.append(error)
                return True

        callback = _Observer(call)
        self._c.emulation_set_observer(ctypes.cast(callback, ctypes.c_void_p))
        try:
            yield
        finally:
            self._c.emulation_set_observer(None)
        if errors:
            raise errors[0]

    @cached_property
    def _kernel_names(self) -> dict[int, str]:
        """The demangled names of the library's functions, by offset."""
        lines = subprocess.run(["nm", "-C", self.library], capture_output=True, text=True, check=True).stdout
        return {int(line[:16], 16): line[19:] for line in lines.splitlines() if line[17:18] in ("t", "T", "W")}

    def reports(self) -> list[str]:
        """The checker's reports since `clear`, one per error. Always empty outside mode "check"."""
        self._reports += self._c.emulation_take_reports().decode().splitlines()
        return list(self._reports)

    def clear(self) -> None:
        """Forget the reports so far."""
        self.reports()
        self._reports = []

    def launches(self) -> int:
        """The number of kernel launches since the library was loaded."""
        return self._c.emulation_launches()


_loaded: Emulation | None = None


def load(mode: str | None = None) -> Emulation:
    """The emulator of this process, built if necessary.

    A process can load one mode. The default is the mode that is loaded already, else the environment variable
    DANET_EMULATION, else "plain". Raises RuntimeError if another mode is loaded, or if the mode is "sanitize" and
    Python was started without ASan (see README.md).
    """
    global _loaded
    mode = mode or (_loaded.mode if _loaded else os.environ.get("DANET_EMULATION", "plain"))
    if _loaded is not None and _loaded.mode != mode:
        raise RuntimeError(f"the emulator is loaded in mode {_loaded.mode}; use another process for mode {mode}")
    if mode == "sanitize" and "libasan" not in os.environ.get("LD_PRELOAD", ""):
        raise RuntimeError("mode sanitize needs ASan: start Python as shown in tests/emulation/README.md")
    if _loaded is None:
        _loaded = Emulation(mode)
    return _loaded
