"""The launches of a deployed network on a CUDA device, recorded without one."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from emulation.emulated import missing  # noqa: E402

from benchmarks.gpu_model.kernels import load  # noqa: E402
from benchmarks.gpu_model.launches import LaunchRecorder, network_launches  # noqa: E402

sys.path.pop(0)

# "make emulation" runs these tests: the emulated operators take a minute to compile.
pytestmark = [pytest.mark.skipif(missing() is not None, reason=str(missing())), pytest.mark.long]

# Kernels that a deployed network launches for one image, with clusters and without (before sm_90, where the sums of the
# splits of K need launches of their own). Change them only to lower values, unless a launch is added on purpose. On
# 2026-11-28, danet had 239 launches.
LAUNCHES = {("danet", True): 56, ("danet_s", True): 56, ("danet", False): 86, ("danet_s", False): 84}


@pytest.mark.parametrize(("name", "has_clusters"), LAUNCHES)
def test_launches_of_a_network_do_not_increase(name, has_clusters):
    settings = load().settings
    settings.has_clusters = has_clusters
    try:
        launches = network_launches(name)
    finally:
        settings.has_clusters = True
    assert len(launches) == LAUNCHES[name, has_clusters]
    assert any("reduce_splits" in launch.kernel for launch in launches) != has_clusters
    assert any((launch.cluster or 1) > 1 for launch in launches) == has_clusters


def test_launches_are_in_order_with_their_sizes():
    """The first layer has one tile of 64 pixels x 32 channels per block, and one input channel."""
    first, second = network_launches("danet_s")[:2]
    assert first.op == second.op == "rep_conv"
    assert first.kernel == "rep_conv_gemm<Half, true, GemmTile<2, 2, 2, 2, 64, 4>, 2>"
    assert first.grid == (128 * 160 // 64, 1, 1) and first.block == (128, 1, 1) and first.cluster == 1
    assert first.shared_bytes == 4 * (64 + 32) * (64 + 16)


def test_launches_of_torch_operators():
    x, weight, bias = (torch.empty(size, device="meta") for size in ((1, 4, 8, 8), (4, 4, 1, 1), (4,)))
    with LaunchRecorder() as recorder:
        y = F.conv2d(x, weight, bias)
        y[:, :2].transpose(2, 3)  # views
        F.gelu(y)
    assert [launch.kernel for launch in recorder.launches] == ["aten::convolution"] * 2 + ["aten::gelu"]
    with (
        pytest.raises(LookupError, match="add the number of launches of aten::cumsum to LAUNCHES_OF"),
        recorder,
    ):
        x.cumsum(0)


def test_launches_of_copies_inside_an_operator():
    """An input that is not channels-last is copied by the operator itself."""
    x = torch.empty(1, 16, 8, 8, device="meta")
    weight = torch.empty(16, 16, 3, 3, device="meta").to(memory_format=torch.channels_last)
    counts = []
    for input in (x.to(memory_format=torch.channels_last), x):
        with LaunchRecorder() as recorder:
            torch.ops.danet.rep_conv(input, weight, None, None, 1, True, False)
        counts.append([launch.op for launch in recorder.launches])
    assert counts == [["rep_conv"], ["clone", "rep_conv"]]
