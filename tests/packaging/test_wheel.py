"""The wheel: built, installed into a new environment, and used from outside the repository.

The wheel with CUDA kernels needs nvcc: `pip install -e '.[nvcc]'`.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from cuda_tools import cuobjdump

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "build_tools"))
from backend import ARCHITECTURES, nvcc  # noqa: E402

sys.path.pop(0)

CPU, CUDA = "danet/ops/libdanet.so", "danet/ops/libdanet_cuda.so"
SYSTEM = ["ld-linux-x86-64", "libc", "libdl", "libgcc_s", "libm", "libpthread", "librt", "libstdc++"]


def run(*command, cwd, timeout=300, **environment):
    command, environment = [str(part) for part in command], {**os.environ, **environment}
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, env=environment)
    assert result.returncode == 0, result.stdout[-20000:] + result.stderr[-20000:]
    return result.stdout


def build(folder: Path, force_cuda: str) -> Path:
    command = (sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    # Compiling for six architectures takes minutes, and longer on a busy machine.
    run(*command, "--quiet", "--disable-pip-version-check", cwd=folder, timeout=3600, FORCE_CUDA=force_cuda)
    built = next(folder.glob("*.whl"))
    return Path(run(sys.executable, ROOT / "build_tools/manylinux.py", built, cwd=folder).strip())


def install(wheel: Path, folder: Path) -> tuple[Path, Path]:
    """Install the wheel into a new environment; return its Python and its package folder."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv/bin/python"
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # Adds torch and the other dependencies of this environment. A .pth file in that folder is not processed, so an
    # editable danet there is not found.
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)
    return python, Path(packages)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), os.environ.get("FORCE_CUDA", ""))


@pytest.fixture(scope="module")
def cuda_wheel(tmp_path_factory) -> Path:
    if nvcc() is None:
        pytest.skip("no nvcc; it is installed by: pip install -e '.[nvcc]'")
    return build(tmp_path_factory.mktemp("wheel"), "1")


@pytest.fixture(scope="module")
def with_cuda_wheel(cuda_wheel, tmp_path_factory) -> tuple[Path, Path]:
    return install(cuda_wheel, tmp_path_factory.mktemp("environment"))


def check(wheel: Path) -> list[str]:
    """Check the tag and the contents of a wheel; return the names of its files."""
    tag = re.search(r"-py3-none-manylinux_2_(\d+)_\w+\.whl$", wheel.name)
    assert tag, wheel.name
    # torch itself needs manylinux_2_28. A higher tag means a newer symbol of glibc: see build_tools/old_glibc.cmake
    assert int(tag[1]) <= 28
    assert [path.name for path in wheel.parent.iterdir()] == [wheel.name]
    names = zipfile.ZipFile(wheel).namelist()
    assert {CPU, "danet/presets/default.yaml", "danet/report/style.css", "danet/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "csrc", "include", "benchmarks", "build_tools"))]
    return names


def test_wheel_tag_and_contents(wheel):
    check(wheel)


@pytest.mark.long
def test_wheel_operator_in_new_environment(wheel, tmp_path):
    python, packages = install(wheel, tmp_path)
    program = (
        "import torch, danet.ops as ops; print(ops.__file__, ops.info()['operators']); "
        "print(tuple(ops.sdc(torch.randn(1, 8, 5, 6), torch.randn(1, 18, 5, 6), torch.randn(1, 9, 5, 6)).shape))"
    )
    output = run(python, "-W", "error", "-c", program, cwd=tmp_path)
    assert output.splitlines() == [f"{packages}/danet/ops/__init__.py compiled", "(1, 8, 5, 6)"]


@pytest.mark.long
def test_cuda_wheel_tag_and_dependencies(cuda_wheel):
    """It links CUDA's runtime statically, because torch may have another version."""
    elf = pytest.importorskip("elftools.elf.elffile")
    assert CUDA in check(cuda_wheel)
    assert cuda_wheel.stat().st_size < 50e6  # the package index allows 100 MB
    with zipfile.ZipFile(cuda_wheel).open(CUDA) as library:
        tags = list(elf.ELFFile(library).get_section_by_name(".dynamic").iter_tags())
    needed = {tag.needed.partition(".so")[0] for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
    assert {"libtorch_cpu", "libtorch_cuda"} < needed <= {"libtorch_cpu", "libtorch_cuda", *SYSTEM}
    assert not [tag for tag in tags if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")]


@pytest.mark.long
def test_cuda_wheel_has_every_architecture(cuda_wheel, tmp_path):
    if cuobjdump() is None:
        pytest.skip("no cuobjdump")
    library = zipfile.ZipFile(cuda_wheel).extract(CUDA, tmp_path)
    files, names = len(list(ROOT.glob("csrc/*/*_cuda.cu"))), ARCHITECTURES.replace(".", "").split(";")
    for what, expected in (
        ("elf", [name.removesuffix("+PTX") for name in names]),
        ("ptx", [name.removesuffix("+PTX") for name in names if name.endswith("+PTX")]),
    ):
        command = ["cuobjdump", f"--list-{what}", library]
        listed = subprocess.run(command, capture_output=True, text=True, check=True, **cuobjdump()).stdout
        found = re.findall(r"sm_(\w+)\.(?:cubin|ptx)", listed)
        assert {name: found.count(name) for name in found} == dict.fromkeys(expected, files)


@pytest.mark.long
def test_cuda_wheel_passes_operator_tests_with_cpu_torch(with_cuda_wheel, tmp_path):
    """Runs outside the repository, without the emulated tests, which need the sources."""
    python, packages = with_cuda_wheel
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    place = run(python, "-W", "error", "-c", "import danet.ops; print(danet.ops.__file__)", cwd=tmp_path)
    assert place.strip() == f"{packages}/danet/ops/__init__.py"
    selection = ("-m", "not long", "-k", "not emulated and not launch", "tests/ops")
    report = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selection, cwd=tmp_path, timeout=3600)
    assert int(re.search(r"(\d+) passed", report)[1]) > 500


@pytest.mark.long
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_cuda_wheel_registers_cuda_kernels(with_cuda_wheel, tmp_path):
    """Needs no GPU. If torch has no CUDA, a stub libtorch_cuda.so provides the only function that is called."""
    python, _ = with_cuda_wheel
    source, library = tmp_path / "torch_cuda.cpp", tmp_path / "libtorch_cuda.so"
    source.write_text('extern "C" int aoti_torch_get_current_cuda_stream() { return 1; }\n')
    run("c++", "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", source, "-o", library, cwd=tmp_path)
    program = f"""
import ctypes, torch
from danet.ops import info, library
if torch.version.cuda is None:
    ctypes.CDLL({str(library)!r}, mode=ctypes.RTLD_GLOBAL)
    torch.version.cuda = "13.0"
    library.WHY_NOT_CUDA = library._load_cuda()
print(library.WHY_NOT_CUDA, info()["cuda_architectures"])
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(*(has("danet::" + name, "CUDA") for name in ("sdc", "sdc_backward", "lcdc", "softmax_gate", "rep_conv")))
"""
    output = run(python, "-W", "error", "-c", program, cwd=tmp_path)
    assert output.splitlines() == ["None 80, 86, 89, 90, 100, 120", "True True True True True"]
