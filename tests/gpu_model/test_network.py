"""The predicted time of whole networks on an H200, as the sum of their launches."""

import pytest
from emulation.emulated import missing

from benchmarks.gpu_model.kernels import cuobjdump, nvcc

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(nvcc() is None or cuobjdump() is None, reason="no nvcc, or no cuobjdump"),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.mark.parametrize(("name", "microseconds"), [("danet", 250), ("danet_s", 250)])
def test_network_keeps_its_budget(name, microseconds):
    from benchmarks.gpu_model.network import predict_network

    launches = predict_network(name)
    assert {launch.op for launch in launches} == {"rep_conv", "safem", "acfa_weight"}
    assert all(launch.seconds > 1e-6 for launch in launches)
    assert sum(launch.seconds for launch in launches) * 1e6 <= microseconds
