"""The build backend: setuptools', which asks for torch, cmake and ninja only where there are none.

An isolated build cannot import the torch of the environment that it builds for. It need not: headers and
libtorch_cpu.so of any torch from 2.10 on will do, and `find_torch` finds them without importing anything.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403  (the hooks that are not defined below)

OLDEST = (2, 10)


def find_torch() -> Path | None:
    """The folder of an installed torch with what the build needs: this environment's, or that around it."""
    for folder in _candidates():
        version = folder / "version.py"
        if (folder / "include/torch/csrc/stable/library.h").exists() and version.exists():
            numbers = re.search(r"__version__ = '(\d+)\.(\d+)", version.read_text())
            if numbers and tuple(map(int, numbers.groups())) >= OLDEST:
                return folder
    return None


def find_tool(name: str) -> str | None:
    """An executable that runs, on the PATH or beside this Python.

    Those that pip installs are Python scripts, which an isolated build sees but cannot run.
    """
    for folder in [*os.environ.get("PATH", "").split(os.pathsep), str(Path(sys.executable).parent)]:
        tool = shutil.which(name, path=folder)
        if tool is not None and subprocess.run([tool, "--version"], capture_output=True).returncode == 0:
            return tool
    return None


ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
"""Of the CUDA kernels, where TORCH_CUDA_ARCH_LIST names none: Ampere to Blackwell, and PTX for what comes after."""


def cuda_architectures() -> str | None:
    """The architectures to build CUDA kernels for, as CMake names them; None where none are to be built."""
    force = os.environ.get("FORCE_CUDA", "")
    if force == "0" or (force != "1" and not (nvcc() and _has_cuda(find_torch()))):
        return None
    if nvcc() is None:
        raise SystemExit(
            "danet: FORCE_CUDA=1 needs nvcc; set CUDA_HOME or CUDACXX, or install it by pip (docs/distribution.md)"
        )
    names = []
    for name in re.split(r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES):
        number = re.fullmatch(r"(\d+)\.(\d)(a?)(\+PTX)?", name)
        if number is None:
            raise SystemExit(f"danet: TORCH_CUDA_ARCH_LIST must be like '8.0;9.0+PTX', got {name!r}")
        names.append("".join(number.groups("")[:3]) + ("" if number.group(4) else "-real"))
    return ";".join(names)


# Of CUDA 13 and later; the packages of CUDA 12 hold no whole nvcc.
PIP_CUDA = "nvidia/cu[0-9]*"


def nvcc() -> str | None:
    """CUDA's compiler: CUDACXX, that of CUDA_HOME, one on the PATH, in the usual place, or pip's beside torch."""
    return next((found for place in _compilers() if (found := shutil.which(place))), None)


def _compilers() -> Iterator[str]:
    if "CUDACXX" in os.environ:
        yield os.environ["CUDACXX"]
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield f"{os.environ[name]}/bin/nvcc"
    yield "nvcc"
    yield "/usr/local/cuda/bin/nvcc"
    if (torch := find_torch()) is not None:
        yield from sorted(map(str, torch.parent.glob(f"{PIP_CUDA}/bin/nvcc")), reverse=True)


def cuda_libraries() -> str | None:
    """The folder of CUDA's libraries where nvcc does not look for them: in pip's packages it is not called lib64."""
    compiler = nvcc()
    home = Path(compiler).parents[1] if compiler else None
    return str(home / "lib") if home and home.match(PIP_CUDA) else None


def _has_cuda(torch: Path | None) -> bool:
    return torch is not None and (torch / "lib/libtorch_cuda.so").exists()


def _candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent
    for name in ("purelib", "platlib"):  # pip hides these from an isolated build's imports, not from its eyes
        yield Path(sysconfig.get_path(name)) / "torch"
    for python in _pythons():
        code = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')"
        found = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if found.returncode == 0 and found.stdout.strip():
            yield Path(found.stdout.strip()).parent


def _pythons() -> Iterator[str]:
    """The interpreters that may have started this build in an environment of its own."""
    configuration = Path(sys.prefix) / "pyvenv.cfg"
    if configuration.exists():
        creator = re.search(r"^command = (.+?) -m ", configuration.read_text(), re.MULTILINE)
        if creator and Path(creator.group(1)).exists():
            yield creator.group(1)
    if "VIRTUAL_ENV" in os.environ:
        yield str(Path(os.environ["VIRTUAL_ENV"]) / "bin/python")
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        python = Path(folder) / "python3"
        if python.exists() and python.parent != Path(sys.executable).parent:
            yield str(python)


def _requirements() -> list[str]:
    needed = [] if find_torch() else ["torch>=2.10"]
    return needed + [name for name in ("cmake", "ninja") if find_tool(name) is None]


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return _requirements()


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    return _requirements()
