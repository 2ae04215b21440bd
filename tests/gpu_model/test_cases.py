"""Budgets: what exceeds one is reported. No nvcc is needed."""

import numpy as np
import pytest

from benchmarks.gpu_model import cases, model
from benchmarks.gpu_model.sass import instruction
from benchmarks.gpu_model.transactions import Transactions


def counts(**changes):
    """A launch of 1320 blocks, ten for each multiprocessor, with 1000 instructions in every sub-core."""
    content = {
        "issue": np.full(4, 1000.0),
        "units": {},
        "opcodes": {},
        "wavefronts": 500.0,
        "read_bytes": 1e3,
        "written_bytes": 0.0,
        "reductions": Transactions(),
        "latency": 2000.0,
        "overlapped": 0.0,
        "blocks": 1320,
        "resident_blocks": 5,
        "registers": 64,
    }
    return model.Counts(**{**content, **changes})


def test_prediction_takes_the_slowest_resource():
    prediction = model.predict(counts(), model.H200, dram_bytes=0)
    assert prediction.bottleneck == "issue"
    assert prediction.seconds == pytest.approx(10 * 1000 / 1.83e9 / model.EFFICIENCY)
    assert prediction.bounds["L1"] == pytest.approx(10 * 500 / 1.83e9)
    assert prediction.bounds["latency"] == pytest.approx(2 * 2000 / 1.83e9)  # two times five blocks
    early = model.predict(counts(overlapped=300.0), model.H200, dram_bytes=0)
    assert early.bounds["latency"] == pytest.approx((2 * 2000 - 300) / 1.83e9)  # only the first blocks start early
    few = model.predict(counts(blocks=198), model.H200, dram_bytes=0)  # some multiprocessors have two blocks, not 1.5
    assert few.bounds["L1"] == pytest.approx(2 * 500 / 1.83e9)
    bytes = 4.3e12 * 20e-6
    assert model.predict(counts(), model.H200, bytes).bottleneck == "device memory"
    assert model.predict(counts(), model.H100, bytes).seconds > model.predict(counts(), model.H200, bytes).seconds
    additions = Transactions(sectors=10**6)
    assert model.predict(counts(reductions=additions), model.H200, 0).bottleneck == "reductions"


def test_busiest_sub_core_decides():
    uneven = counts(issue=np.array([1600.0, 800, 800, 800]))
    assert uneven.imbalance == 1.6
    assert model.predict(uneven, model.H200, 0).seconds == pytest.approx(10 * 1600 / 1.83e9 / model.EFFICIENCY)


@pytest.mark.parametrize(
    "budget, text",
    [
        (cases.Budget(share=0.5), "share 0.42"),
        (cases.Budget(microseconds=5), "microseconds 6.07"),
        (cases.Budget(imbalance=0.9), "imbalance of the sub-cores 1.00"),
        (cases.Budget(read_megabytes=1), "read megabytes 1.32"),
    ],
)
def test_exceeded_budget_is_reported(budget, text):
    main = counts()
    bytes = 0.42 * 4.3e12 * 10 * 1000 / 1.83e9 / model.EFFICIENCY
    predictions = {device.name: [model.predict(main, device, bytes)] for device in (model.H100, model.H200)}
    result = cases.Result(cases.Case("kernel", lambda: None, bytes, budget), [main], predictions)
    (failure,) = result.failures()
    assert text in failure and failure.startswith("kernel: ")
    loose = cases.Budget(share=0.4, microseconds=7, imbalance=1.1, read_megabytes=2)
    assert cases.Result(cases.Case("kernel", lambda: None, bytes, loose), [main], predictions).failures() == []
    assert "kernel" in "\n".join(cases.rows([result]))


def test_control_fields_and_operands_are_parsed():
    parsed = instruction(3, 0x30, "@!P0 LDG.E.128 R12, desc[UR6][R10.64+-0x10]", 0x000EA2000C1E1D00)
    assert (parsed.opcode, parsed.modifiers) == ("LDG", ("E", "128"))
    assert parsed.predicate.inverted and parsed.predicate.number == 0
    target, address = parsed.operands
    assert target.number == 12
    assert [(term.kind, term.value) for term in address.terms] == [("register", 0), ("immediate", -16)]
    assert (parsed.stall, parsed.write_barrier, parsed.read_barrier, parsed.wait) == (1, 2, 7, 0)
