"""Repeats the tests of the operators on each lower instruction set of this processor, and on the emulated matrix unit.

`make sanitize` runs the same tests on each of them with sanitizers; here they run on the optimized kernels.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from danet.ops import info

ROOT = Path(__file__).parents[2]
NAMES = (
    "sdc",
    "dcn",
    "deform_conv",
    "lcdc",
    "softmax_gate",
    "rep_conv",
    "ms_deform_attn",
    "fused_safem",
    "run_program",
    "detail_channels",
)
TESTS = [ROOT / f"tests/ops/test_{name}.py" for name in NAMES]


def run_tests(capability: str, key: str, text: str, arguments: list) -> None:
    """Runs pytest with DANET_CPU_CAPABILITY, after a check that `info()[key]` has the value `text`."""
    environment = {**os.environ, "DANET_CPU_CAPABILITY": capability}
    program = f"import danet.ops, pytest, sys; assert danet.ops.info()[{key!r}] == {text!r}; "
    program += "sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize(("capability", "text"), [("amx-emulated", "AMX, emulated"), ("avx512-bf16", "AVX512_BF16")])
def test_ops_on_other_matrix_units(capability, text):
    """The kernels for AMX, with plain C++ in place of its instructions on any processor, and with AVX512_BF16."""
    if capability == "avx512-bf16" and info()["matrix_unit"] != "AMX":
        pytest.skip("this processor has no AVX512_BF16, or this run uses it already")
    files = [ROOT / f"tests/ops/test_{name}.py" for name in ("rep_conv", "fused_safem", "run_program")]
    run_tests(capability, "matrix_unit", text, [*files, "-k", "match or precision or dtypes or bfloat16"])


@pytest.mark.long
@pytest.mark.parametrize(("capability", "text"), [("default", "baseline"), ("avx2", "AVX2 and FMA")])
def test_ops_on_lower_instruction_set(capability, text):
    if info()["instruction_set"] == "baseline":
        pytest.skip("this run uses the lowest instruction set already")
    if capability == "avx2" and info()["instruction_set"] != "AVX-512":
        pytest.skip("this run uses AVX2 or lower already")
    run_tests(capability, "instruction_set", text, TESTS)
