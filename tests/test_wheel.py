"""The wheel, as a user gets it: built, installed into a new environment, used from outside the repository."""

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, cwd):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = (sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(*command, "--quiet", "--disable-pip-version-check", cwd=folder)
    built = next(folder.glob("*.whl"))
    return Path(run(sys.executable, ROOT / "build_tools/manylinux.py", built, cwd=folder).strip())


def test_one_wheel_serves_every_python(wheel):
    tag = re.search(r"-py3-none-manylinux_2_(\d+)_\w+\.whl$", wheel.name)
    assert tag, wheel.name
    if "danet/ops/libdanet_cuda.so" not in zipfile.ZipFile(wheel).namelist():  # in which CUDA's runtime is linked
        assert int(tag[1]) <= 28  # torch's own; something newer of glibc or libstdc++: csrc/common/glibc.cpp
    assert [path.name for path in wheel.parent.iterdir()] == [wheel.name]
    names = zipfile.ZipFile(wheel).namelist()
    assert "danet/ops/libdanet.so" in names
    assert {"danet/presets/default.yaml", "danet/report/style.css", "danet/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "csrc", "include", "benchmarks", "build_tools"))]


def test_an_operator_from_a_new_environment(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    # Lends torch and the rest; an editable danet there is found by its own finder, which this path does not start.
    Path(packages, "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=tmp_path)
    program = (
        "import torch, danet.ops as ops; print(ops.__file__, ops.info()['operators']); "
        "print(tuple(ops.sdc(torch.randn(1, 8, 5, 6), torch.randn(1, 18, 5, 6), torch.randn(1, 9, 5, 6)).shape))"
    )
    output = run(python, "-W", "error", "-c", program, cwd=tmp_path)
    assert output.splitlines() == [f"{packages}/danet/ops/__init__.py compiled", "(1, 8, 5, 6)"]
