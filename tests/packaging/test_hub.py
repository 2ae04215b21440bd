"""build_tools/hub.py: assembles the layout of the `kernels` hub, which is then loaded from a local folder."""

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


def test_hub_variant_files_and_metadata(variant):
    assert re.fullmatch(r"torch-stable-abi210-cpu-\w+-linux", variant.name)
    assert variant.parent.name == "build"
    names = {path.name for path in variant.iterdir()}
    assert {"__init__.py", "sdc.py", "layers.py", "library.py", "libdanet.so", "metadata.json"} < names
    assert all(name.endswith((".py", ".so", ".json")) for name in names)
    metadata = json.loads((variant / "metadata.json").read_text())
    assert metadata["backend"] == {"type": "cpu"}
    assert re.fullmatch(r"_danet_cpu_[0-9a-f]{7}", metadata["id"])


def test_hub_variant_imports(variant):
    for path in variant.glob("*.py"):
        for module in re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE):
            top = module.partition(".")[0]
            assert top in {"", "torch", *sys.stdlib_module_names}, f"{path.name}: {module}"


def load(load_ops: str, variant: Path, **environment: str) -> str:
    """The output of a process that has torch and this variant, but no danet."""
    program = f"""
import sys
sys.modules["danet"] = None  # importing danet fails
{load_ops}
import torch
x, offset, mask = torch.randn(1, 8, 5, 6), torch.randn(1, 18, 5, 6), torch.randn(1, 9, 5, 6)
compiled = torch.ops.danet.sdc(x, offset, mask, 1, 3, 3, 1, 1, 1, 1, 1, 1, 1.0, True, False)
assert torch.equal(ops.sdc(x, offset, mask), compiled)
torch.testing.assert_close(ops.sdc(x, offset, mask), ops.sdc_reference(x, offset, mask))
ops.SDC(8)(x).sum().backward()
# transformers finds the layer by this name.
layer, value = ops.layers.MultiScaleDeformableAttention(), torch.randn(1, 30, 2, 4)
points = torch.rand(1, 5, 2, 1, 3, 2), torch.rand(1, 5, 2, 1, 3)
out = layer(value, torch.tensor([[5, 6]]), [(5, 6)], torch.tensor([0]), *points, 64)
torch.testing.assert_close(out, ops.ms_deform_attn_reference(value, [(5, 6)], None, *points))
print(ops.__name__, ops.info()["operators"])
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_hub_variant_loads_by_path(variant):
    """As the hub does: under the name in metadata.json, here without the package `kernels`."""
    name = json.loads((variant / "metadata.json").read_text())["id"]
    load_ops = f"""
import importlib.util
spec = importlib.util.spec_from_file_location({name!r}, {str(variant / "__init__.py")!r})
ops = importlib.util.module_from_spec(spec)
sys.modules[{name!r}] = ops
spec.loader.exec_module(ops)
"""
    assert load(load_ops, variant) == f"{name} compiled"


def test_hub_variant_loads_with_kernels_package(variant, tmp_path):
    pytest.importorskip("kernels")
    name = json.loads((variant / "metadata.json").read_text())["id"]
    load_ops = f"""
import warnings
from pathlib import Path
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own
    import kernels
    ops = kernels.get_local_kernel(Path({str(variant.parents[1])!r}), backend="cpu")
"""
    assert load(load_ops, variant, HF_HOME=str(tmp_path)) == f"{name} compiled"


def test_hub_variant_beside_danet_warns_and_uses_reference(variant):
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
def test_hub_cuda_library_gets_its_own_variant(tmp_path):
    """Needs no GPU: the library is read, not loaded."""
    built = ('-DDANET_CUDA_VERSION="13.0.88"', '-DDANET_CUDA_ARCHITECTURES="80-real,90a-real,120"')
    source, target = ROOT / "csrc/common/cuda_info.cpp", tmp_path / hub.CUDA
    subprocess.run(["c++", "-shared", "-fPIC", *built, source, "-o", target], check=True, timeout=60)
    (tmp_path / hub.CPU).touch()
    _, variant = hub.assemble(tmp_path / "hub", libraries=tmp_path)
    assert variant.name.startswith("torch-stable-abi210-cu130-")
    assert {hub.CPU, hub.CUDA} < {path.name for path in variant.iterdir()}
    metadata = json.loads((variant / "metadata.json").read_text())
    assert metadata["backend"] == {"type": "cuda", "archs": ["8.0", "9.0a", "12.0+PTX"]}


def test_hub_without_built_kernels_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match=r"libdanet\.so is missing; build it with: make kernels"):
        hub.assemble(tmp_path, libraries=tmp_path)
