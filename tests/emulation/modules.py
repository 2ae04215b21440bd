"""Builds the Python modules of the CUDA emulator (README.md), and imports them. Does not import torch."""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

import numpy as np

MODES = ("plain", "sanitize", "check")
SOURCE = Path(__file__).parent
ROOT = SOURCE.parents[1]


def _tool(name: str) -> str | None:
    """The path of an executable on the PATH or beside this Python, or None."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def missing() -> str | None:
    """The reason why this machine cannot build the emulator, or None."""
    absent = [tool for tool in ("cmake", "ninja", "g++") if _tool(tool) is None]
    if importlib.util.find_spec("pybind11") is None:
        absent.append("pybind11")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        absent.append("the header files of Python")
    return f"the CUDA emulator needs {', '.join(absent)}" if absent else None


def build(mode: str, target: str) -> Path:
    """Build the module "danet_emulated" or "seeded" in one of MODES; return its path."""
    import pybind11

    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    folder = ROOT / "build" / f"emulation-{mode}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        options = {
            "MODE": mode,
            "TORCH_DIR": importlib.util.find_spec("torch").submodule_search_locations[0],
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "CMAKE_CXX_COMPILER": "g++",
            "CMAKE_MAKE_PROGRAM": _tool("ninja"),
        }
        _run([_tool("cmake"), "-S", SOURCE, "-B", folder, "-G", "Ninja", *(f"-D{k}={v}" for k, v in options.items())])
        _run([_tool("cmake"), "--build", folder, "--target", target, "--parallel", str(os.cpu_count() or 1)])
    return folder / f"{target}.so"


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout}")


def load_module(path: Path) -> ModuleType:
    """Import a built module. Several builds of one module can be loaded side by side."""
    name = f"{path.parent.name}.{path.stem}"  # pybind11 initializes only one module of each name
    spec = importlib.util.spec_from_loader(name, ExtensionFileLoader(name, str(path)))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def traced(module: ModuleType) -> Iterator[list[np.ndarray]]:
    """Inside the block, record the memory accesses of the kernels; at its end, add them to the given list.

    The array has the fields address, bytes, kind (module.READ, WRITE or ATOMIC), shared, block, thread and site (see
    module.source_of_site). It is the emulator's own memory, not a copy. Raises RuntimeError outside mode "check".
    """
    if not module.is_checked:
        raise RuntimeError('traces of memory accesses need the emulator in mode "check"')
    traces: list[np.ndarray] = []
    module.take_trace()
    module.settings.traced = True
    try:
        yield traces
    finally:
        module.settings.traced = False
        traces.append(module.take_trace())
