"""Every kernel keeps the budget that benchmarks/gpu_model/cases.py gives it, as the performance model predicts it."""

import dataclasses
import functools
import os

import pytest
from emulation.emulated import missing

from benchmarks.gpu_model import cases, model
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


MAX_INSTRUCTIONS_BEFORE_COPY = 250
"""Instructions of a rep_conv kernel before its first asynchronous copy to shared memory."""


def test_rep_conv_kernels_start_loading_early():
    kernels = machine_code("rep_conv").kernels
    tiles = {name: kernel for name, kernel in kernels.items() if name.startswith("rep_conv_gemm") and "16>" in name}
    tiles = {name: kernel for name, kernel in tiles.items() if "true" in name}  # on tensor cores, aligned
    assert len(tiles) == 12
    for name, kernel in tiles.items():
        opcodes = [instruction.opcode for instruction in kernel.function.instructions]
        assert opcodes.index("LDGSTS") <= MAX_INSTRUCTIONS_BEFORE_COPY, name


def test_work_before_the_wait_of_a_programmatic_launch_does_not_count():
    case, code = cases.CASES["rep_conv stage 3 N=1 bfloat16"](), machine_code("rep_conv")
    with code.running(cases.some_blocks) as executions:
        case.call()
    (execution,) = executions
    assert execution.launch.programmatic
    counts = model.count(execution)
    assert 200 < counts.overlapped < 600
    alone, after_another = (model.predict(counts, model.H200, 0.0, overlaps=overlaps) for overlaps in (False, True))
    saved = alone.bounds["latency"] - after_another.bounds["latency"]
    assert saved == pytest.approx(counts.overlapped / model.H200.clock)
    plain = dataclasses.replace(execution, launch=dataclasses.replace(execution.launch, programmatic=False))
    assert model.count(plain).overlapped == 0
