"""Builds the kernels with CMake and Ninja, and packages them in danet/ops. Everything else is in pyproject.toml.

Environment variables:
    MAX_JOBS: number of parallel compilations.
    CXX: the C++ compiler.
    SANITIZE: sanitizers to enable, such as address,undefined; builds the CPU kernels only.
    INSTRUCTION_SET: with SANITIZE, baseline, avx2 or avx512 builds the CPU kernels for this one only.
    WARNINGS_AS_ERRORS: 0 accepts warnings of the CUDA compiler, for a host compiler that was never tried.
    FORCE_CUDA: 1 builds CUDA kernels, 0 does not; by default they are built if torch has CUDA and nvcc is found.
    TORCH_CUDA_ARCH_LIST: GPU architectures, such as "8.0;9.0+PTX".
    CUDA_HOME, CUDACXX: where to find nvcc.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_tools"))
from backend import cuda_architectures, cuda_libraries, find_tool, find_torch, nvcc  # noqa: E402


class BuildKernels(build_ext):
    """Runs CMake. The results are shared libraries that torch loads, not Python modules."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, extension: Extension) -> None:
        torch, cmake, ninja = find_torch(), find_tool("cmake"), find_tool("ninja")
        for name, found in (("torch >= 2.10", torch), ("cmake", cmake), ("ninja", ninja)):
            if found is None:
                raise SystemExit(
                    f"danet: {name} is needed to build the kernels; install it: pip install {name.split()[0]}"
                )
        if "CXX" not in os.environ and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise SystemExit("danet: a C++ compiler is needed to build the kernels; install g++ or set CXX")
        sanitize = os.environ.get("SANITIZE", "")
        folder = ROOT / "build" / ("cmake-sanitize" if sanitize else "cmake")
        configure = [cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DTORCH_DIR={torch}", f"-DSANITIZE={sanitize}"]
        # Only with sanitizers, so that a variable of the environment cannot slow down an installation.
        configure += [f"-DINSTRUCTION_SET={os.environ.get('INSTRUCTION_SET', '') if sanitize else ''}"]
        configure += [f"-DCUDA_ARCHITECTURES={CUDA or ''}"] + ([f"-DCMAKE_CUDA_COMPILER={nvcc()}"] if CUDA else [])
        configure += [f"-DWARNINGS_AS_ERRORS={os.environ.get('WARNINGS_AS_ERRORS', '1')}"]
        # Passed in every build: the ninja of an earlier isolated build no longer exists.
        self._run(*configure, f"-DCMAKE_MAKE_PROGRAM={ninja}")
        jobs = os.environ.get("MAX_JOBS")
        self._run(cmake, "--build", folder, *(["--parallel", jobs] if jobs else []))

        built = folder / f"{extension.name.rpartition('.')[2]}.so"
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a new file: a running process keeps the old one
        shutil.copy2(built, target)

    def _run(self, *command) -> None:
        paths = [os.environ.get("LIBRARY_PATH"), cuda_libraries() if CUDA else None]
        library_path = os.pathsep.join(filter(None, paths))  # no empty entries: they mean the current folder
        environment = {**os.environ, **({"LIBRARY_PATH": library_path} if library_path else {})}
        try:
            subprocess.run([str(part) for part in command], check=True, env=environment)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"danet: building the kernels failed: {Path(error.cmd[0]).name} reported the error above"
            ) from None


class Wheel(bdist_wheel):
    """Tags the wheel py3-none: the libraries do not depend on the Python version."""

    def run(self) -> None:
        # Remove the results of earlier builds, such as CUDA kernels, which would be packaged otherwise.
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


CUDA = None if "SANITIZE" in os.environ else cuda_architectures()
LIBRARIES = ["libdanet", "libdanet_cuda"] if CUDA else ["libdanet"]

setup(
    ext_modules=[Extension(f"danet.ops.{name}", []) for name in LIBRARIES],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
