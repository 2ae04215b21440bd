import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import danet.ops
from danet.ops import describe, info


def test_info_and_describe():
    facts = info()
    assert facts["torch"] == torch.__version__
    assert (facts["operators"], facts["why"]) == ("compiled", "")
    assert facts["instruction_set"] in ("baseline", "AVX2 and FMA", "AVX-512")
    assert facts["threads"] == torch.get_num_threads()
    assert "\n" not in describe()
    assert torch.__version__ in describe()
    assert "compiled operators" in describe()


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


@functools.cache
def printed(capability: str) -> dict[str, str]:
    """What ``python -m danet.ops`` prints with DANET_CPU_CAPABILITY, in a new process, because it is read once."""
    result = run("-m", "danet.ops", DANET_CPU_CAPABILITY=capability)
    assert result.returncode == 0, result.stderr
    entries = [line.partition(" ") for line in result.stdout.splitlines()]
    return {name: text.strip() for name, _, text in entries}


def test_info_command_prints_every_entry():
    facts = printed("default")
    assert list(facts) == list(info())
    assert facts["operators"] == "compiled"


@pytest.mark.parametrize(("asked", "text"), [("default", "baseline"), ("avx2", "AVX2 and FMA"), ("avx512", "AVX-512")])
def test_info_instruction_set_can_be_lowered(asked, text):
    if text != "baseline" and info()["instruction_set"] != "AVX-512":
        pytest.skip("this processor has no AVX-512")
    assert printed(asked)["instruction_set"] == text


@pytest.mark.parametrize(
    ("asked", "unit"),
    [("default", "none"), ("avx2", "none"), ("avx512", "none"), ("amx-emulated", "AMX, emulated"), ("unknown", None)],
)
def test_info_matrix_unit(asked, unit):
    assert printed(asked)["matrix_unit"] == (printed("another")["matrix_unit"] if unit is None else unit)


def test_info_avx512_bf16_replaces_amx():
    expected = "AVX512_BF16" if printed("unknown")["matrix_unit"] in ("AMX", "AVX512_BF16") else "none"
    assert printed("avx512-bf16")["matrix_unit"] == expected


def test_ops_without_library_warn_once(tmp_path):
    """A source checkout that was not built runs the references."""
    package = Path(danet.ops.__file__).parent
    shutil.copytree(package, tmp_path / "danet/ops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "danet/__init__.py").touch()  # otherwise an installed danet is imported
    program = (
        "from danet.ops import SDC, info; import torch; SDC(8)(torch.randn(1, 8, 5, 5)); print(info()['operators'])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.stdout.strip() == "reference", result.stderr
    assert result.stderr.count("Warning") == 1
    assert "pip install -e . --no-build-isolation" in result.stderr


def test_ops_import_only_torch():
    """No other package is imported, and nothing is printed; packages of other parts of danet are blocked."""
    program = """
import sys
import torch, torch._dynamo  # modules that torch itself imports are allowed
loaded = set(sys.modules)
sys.modules.update(dict.fromkeys(["cv2", "jsonargparse", "rich", "safetensors", "matplotlib", "tensorboard"]))
from danet.ops import SDC
SDC(8)(torch.randn(1, 8, 5, 5)).sum().backward()
third = {name.partition(".")[0] for name in set(sys.modules) - loaded} - sys.stdlib_module_names - {"torch"}
print(sorted(name for name in third if sys.modules[name] is not None))
"""
    result = run("-c", program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "['danet']"
    assert result.stderr == ""


def test_ops_without_cuda_kernels_warn_once():
    """Fake tensors have a CUDA device on any machine."""
    program = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from danet.ops import library, softmax_gate
library.WHY_NOT_CUDA = "of a test"
with FakeTensorMode(), torch.no_grad():
    x = torch.empty(2, 8, 5, 6, device="cuda")
    print(softmax_gate(x, x).shape, softmax_gate(x, x).device)
"""
    result = run("-c", program)
    assert result.stdout == "torch.Size([2, 8, 5, 6]) cuda:0\n", result.stderr
    assert result.stderr.count("Warning") == 1
    assert "slow reference operators on CUDA tensors, of a test" in result.stderr
