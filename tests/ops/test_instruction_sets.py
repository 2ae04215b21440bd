"""Repeats the tests of the operators on each lower instruction set that this processor supports.

`make sanitize` runs the same tests on each of them with sanitizers; here they run on the optimized kernels.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from danet.ops import info

TESTS = [Path(__file__).with_name(f"test_{name}.py") for name in ("sdc", "lcdc", "softmax_gate", "rep_conv")]


@pytest.mark.long
@pytest.mark.parametrize(("capability", "text"), [("default", "baseline"), ("avx2", "AVX2 and FMA")])
def test_ops_on_lower_instruction_set(capability, text):
    if info()["instruction_set"] == "baseline":
        pytest.skip("this run uses the lowest instruction set already")
    if capability == "avx2" and info()["instruction_set"] != "AVX-512":
        pytest.skip("this run uses AVX2 or lower already")
    environment = {**os.environ, "DANET_CPU_CAPABILITY": capability}
    program = f"import danet.ops, pytest, sys; assert danet.ops.info()['instruction_set'] == {text!r}; "
    program += "sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "-q", "-p", "no:cacheprovider", *map(str, TESTS)]
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=600, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == 0, result.stdout[-3000:]
