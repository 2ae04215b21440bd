"""The build backend: setuptools' own, but it requires torch, cmake and ninja only if they are not installed yet.

An isolated build (pip's default) cannot import the torch of the environment that it builds for. It does not have to:
the build only needs the headers and libtorch_cpu.so of any torch >= 2.10, which `find_torch` locates without importing
torch.
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

MIN_TORCH_VERSION = (2, 10)


def find_torch() -> Path | None:
    """The folder of an installed torch that has the files the build needs, or None.

    Searches this environment first, then the environments around an isolated build.
    """
    for folder in _candidates():
        version = folder / "version.py"
        if (folder / "include/torch/csrc/stable/library.h").exists() and version.exists():
            numbers = re.search(r"__version__ = '(\d+)\.(\d+)", version.read_text())
            if numbers and tuple(map(int, numbers.groups())) >= MIN_TORCH_VERSION:
                return folder
    return None


def find_tool(name: str) -> str | None:
    """The path of an executable that runs, on the PATH or beside this Python, or None.

    It is started once with `--version`: cmake and ninja from pip are Python scripts, which an isolated build can find
    but not run.
    """
    for folder in [*os.environ.get("PATH", "").split(os.pathsep), str(Path(sys.executable).parent)]:
        tool = shutil.which(name, path=folder)
        if tool is not None and subprocess.run([tool, "--version"], capture_output=True).returncode == 0:
            return tool
    return None


ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
"""Default of TORCH_CUDA_ARCH_LIST: Ampere to Blackwell, and PTX for later GPUs."""


def cuda_architectures() -> str | None:
    """The GPU architectures in CMake's notation, or None if no CUDA kernels are to be built.

    Raises SystemExit if FORCE_CUDA=1 and there is no nvcc, or if TORCH_CUDA_ARCH_LIST is malformed.
    """
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


# Folder of the CUDA packages on PyPI beside torch, from CUDA 13 on. The packages of CUDA 12 have no complete nvcc.
PIP_CUDA = "nvidia/cu[0-9]*"


def nvcc() -> str | None:
    """The CUDA compiler: from CUDACXX, CUDA_HOME, CUDA_PATH, the PATH, /usr/local/cuda or the pip packages; or None."""
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
    """The library folder of the CUDA pip packages, which nvcc does not search itself; None for a CUDA toolkit."""
    compiler = nvcc()
    home = Path(compiler).parents[1] if compiler else None
    return str(home / "lib") if home and home.match(PIP_CUDA) else None


def _has_cuda(torch: Path | None) -> bool:
    return torch is not None and (torch / "lib/libtorch_cuda.so").exists()


def _candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent
    for name in ("purelib", "platlib"):  # an isolated build cannot import from these, but can read them
        yield Path(sysconfig.get_path(name)) / "torch"
    for python in _pythons():
        code = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')"
        found = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if found.returncode == 0 and found.stdout.strip():
            yield Path(found.stdout.strip()).parent


def _pythons() -> Iterator[str]:
    """Python interpreters that may have started this isolated build."""
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
