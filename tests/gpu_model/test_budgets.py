"""Every kernel keeps the budget that benchmarks/gpu_model/cases.py gives it, as the performance model predicts it."""

import functools
import os

import pytest
from emulation.emulated import missing

from benchmarks.gpu_model import cases
from benchmarks.gpu_model.kernels import MachineCode, cuobjdump, nvcc

# All of these tests are long, because the emulator takes a minute to compile. "make emulation", which builds it anyway,
# runs the quick ones. They are skipped with sanitizers, which the CUDA compiler would run under, too.
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(nvcc() is None or cuobjdump() is None, reason="no nvcc, or no cuobjdump"),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif(os.environ.get("DANET_EMULATION") == "sanitize", reason="the emulator runs with sanitizers"),
]

QUICK = [name for name in cases.CASES if name.startswith(("lcdc", "softmax_gate"))]
"""The cases of the operators that nvcc compiles in a few seconds."""


@functools.cache
def machine_code(operator: str) -> MachineCode:
    """The compiled kernels of an operator, once per process."""
    return cases.compile_operators([operator])


def check_budget(name: str) -> None:
    result = cases.predict(cases.CASES[name](), machine_code(cases.operator_of(name)))
    assert result.failures() == []


@pytest.mark.parametrize("name", QUICK)
def test_quick_kernel_keeps_its_budget(name):
    check_budget(name)


@pytest.mark.parametrize("name", [name for name in cases.CASES if name not in QUICK])
def test_kernel_keeps_its_budget(name):
    check_budget(name)
