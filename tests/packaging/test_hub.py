"""The layout that the `kernels` hub loads: assembled, then loaded from a local folder."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from danet.ops import library

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "build_tools"))
import hub  # noqa: E402


@pytest.fixture(scope="module")
def variant(tmp_path_factory) -> Path:
    if library.WHY_NOT is not None:
        pytest.skip(library.WHY_NOT)
    return next(path for path in hub.assemble(tmp_path_factory.mktemp("hub")) if "-cpu-" in path.name)


def test_what_a_variant_is(variant):
    assert re.fullmatch(r"torch-stable-abi210-cpu-\w+-linux", variant.name)
    assert variant.parent.name == "build"
    names = {path.name for path in variant.iterdir()}
    assert {"__init__.py", "sdc.py", "library.py", "libdanet.so", "metadata.json"} < names
    assert all(name.endswith((".py", ".so", ".json")) for name in names)
    metadata = json.loads((variant / "metadata.json").read_text())
    assert metadata["backend"] == {"type": "cpu"}
    assert re.fullmatch(r"_danet_cpu_[0-9a-f]{7}", metadata["id"])


def test_imports_are_relative_torch_or_the_standard_library(variant):
    for path in variant.glob("*.py"):
        for module in re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE):
            top = module.partition(".")[0]
            assert top in {"", "torch", *sys.stdlib_module_names}, f"{path.name}: {module}"


def load(how: str, variant: Path, **environment: str) -> str:
    """What a process prints that has torch and this variant, but no danet."""
    program = f"""
import sys
sys.modules["danet"] = None  # whoever imports it fails
{how}
import torch
x, offset, mask = torch.randn(1, 8, 5, 6), torch.randn(1, 18, 5, 6), torch.randn(1, 9, 5, 6)
compiled = torch.ops.danet.sdc(x, offset, mask, 1, 3, 3, 1, 1, 1, 1, 1, 1, 1.0, True, False)
assert torch.equal(ops.sdc(x, offset, mask), compiled)
torch.testing.assert_close(ops.sdc(x, offset, mask), ops.sdc_reference(x, offset, mask))
ops.SDC(8)(x).sum().backward()
print(ops.__name__, ops.info()["operators"])
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_it_is_loaded_as_the_hub_does(variant):
    """By its path, under the name in metadata.json, without the package `kernels`."""
    name = json.loads((variant / "metadata.json").read_text())["id"]
    how = f"""
import importlib.util
spec = importlib.util.spec_from_file_location({name!r}, {str(variant / "__init__.py")!r})
ops = importlib.util.module_from_spec(spec)
sys.modules[{name!r}] = ops
spec.loader.exec_module(ops)
"""
    assert load(how, variant) == f"{name} compiled"


def test_kernels_loads_it(variant, tmp_path):
    pytest.importorskip("kernels")
    name = json.loads((variant / "metadata.json").read_text())["id"]
    how = f"""
import warnings
from pathlib import Path
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own
    import kernels
    ops = kernels.get_local_kernel(Path({str(variant.parents[1])!r}), backend="cpu")
"""
    assert load(how, variant, HF_HOME=str(tmp_path)) == f"{name} compiled"


def test_beside_another_danet_it_is_slow_and_says_so(variant):
    program = f"""
import importlib.util, sys
import danet.ops
spec = importlib.util.spec_from_file_location("second", {str(variant / "__init__.py")!r})
sys.modules["second"] = second = importlib.util.module_from_spec(spec)
spec.loader.exec_module(second)
print(danet.ops.info()["operators"], second.info()["operators"])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "compiled reference", result.stderr
    assert "another danet in this process" in result.stderr


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_cuda_library_makes_a_variant_of_its_own(tmp_path):
    """Without a GPU, and without what the library needs to be loaded."""
    built = ('-DDANET_CUDA_VERSION="13.0.88"', '-DDANET_CUDA_ARCHITECTURES="80-real,90a-real,120"')
    source, target = ROOT / "csrc/common/cuda_info.cpp", tmp_path / hub.CUDA
    subprocess.run(["c++", "-shared", "-fPIC", *built, source, "-o", target], check=True, timeout=60)
    (tmp_path / hub.CPU).touch()
    _, variant = hub.assemble(tmp_path / "hub", libraries=tmp_path)
    assert variant.name.startswith("torch-stable-abi210-cu130-")
    assert {hub.CPU, hub.CUDA} < {path.name for path in variant.iterdir()}
    metadata = json.loads((variant / "metadata.json").read_text())
    assert metadata["backend"] == {"type": "cuda", "archs": ["8.0", "9.0a", "12.0+PTX"]}


def test_without_kernels_that_are_built_it_says_what_to_do(tmp_path):
    with pytest.raises(SystemExit, match=r"libdanet\.so is missing; build it with: make kernels"):
        hub.assemble(tmp_path, libraries=tmp_path)
