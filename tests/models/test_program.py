"""The CPU program of a deployed network: it computes what the network computes when it is called layer by layer."""

import copy
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from danet.config import ModelConfig
from danet.models import build_model, program
from danet.models.program import CpuProgram, program_of
from danet.ops import info

pytestmark = pytest.mark.skipif(info()["operators"] != "compiled", reason="the operators are not compiled")

CONFIG = ModelConfig(name="danet_nano", classes=["drone", "bird"])


def trained(config=CONFIG, seed=0):
    """A network whose attention is not uniform, as it would be right after the initialization."""
    torch.manual_seed(seed)
    model = build_model(config).eval()
    for module in model.modules():
        if type(module).__name__ == "FFN":
            torch.nn.init.normal_(module[2].weight, std=0.2)
    return model


@pytest.fixture
def num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def dtypes():
    return [torch.float32, torch.bfloat16] if torch.ops.danet.matrix_unit() else [torch.float32]


def layer_by_layer(deployed, images):
    images = images.to(dtype=deployed.input_dtype, memory_format=torch.channels_last)
    return deployed.network(images)


def tensors(output):
    return [*output.features, *output.logits, *output.deltas]


@pytest.mark.parametrize("shape", [(1, 1, 64, 96), (2, 1, 33, 71), (3, 1, 32, 32)])
@torch.no_grad()
def test_program_equals_the_network_bit_for_bit(shape):
    for dtype in dtypes():
        deployed = trained().deploy(dtype=dtype)
        images = torch.randn(shape)
        output = deployed(images)
        assert isinstance(deployed.program, CpuProgram)
        for one, two in zip(tensors(output), tensors(layer_by_layer(deployed, images)), strict=True):
            assert one.dtype == two.dtype and torch.equal(one, two)


@pytest.mark.parametrize("shape", [(1, 1, 64, 96), (2, 1, 33, 71)])
@pytest.mark.parametrize("threads", [1, 2, 5])
@torch.no_grad()
def test_program_of_a_deeper_network_equals_it_with_any_number_of_threads(shape, threads, num_threads):
    images = torch.randn(shape)
    for dtype in dtypes():
        deployed = trained(ModelConfig(name="danet_s")).deploy(dtype=dtype)
        num_threads(1)
        single = layer_by_layer(deployed, images)
        num_threads(threads)
        # The number of threads may change the last bits of torch's convolutions in the network.
        expected = layer_by_layer(deployed, images)
        for one, other in zip(tensors(expected), tensors(single), strict=True):
            assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))
        for _ in range(3):
            output = deployed(images)
            assert all(torch.equal(*pair) for pair in zip(tensors(output), tensors(expected), strict=True))
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in output.features)


@torch.no_grad()
def test_convolutions_that_feed_convolutions_write_a_border():
    deployed = trained(ModelConfig(name="danet_s")).deploy()
    instructions = program_of(deployed.network).instructions
    assert sum(each.wants_border for each in instructions) == 27
    for each in instructions:
        readers = [other for other in instructions if each.out in other.inputs]
        assert not each.wants_border or all(other.kind in (program.CONVOLVE, program.NARROW) for other in readers)


@torch.no_grad()
def test_programs_run_in_several_threads_of_python(num_threads):
    num_threads(2)
    deployed, images = trained().deploy(), torch.randn(4, 1, 64, 96)
    expected = [deployed(image[None]).logits[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            results = list(pool.map(lambda image: run_without_grad(deployed, image[None]).logits[0], images))
            assert all(map(torch.equal, results, expected))


def run_without_grad(deployed, images):
    with torch.no_grad():  # the mode belongs to a thread
        return deployed(images)


@torch.no_grad()
def test_features_of_an_earlier_call_are_not_overwritten():
    deployed = trained().deploy()
    first = deployed(torch.randn(1, 1, 64, 64))
    before = copy.deepcopy(first)
    deployed(torch.randn(1, 1, 64, 64))
    assert all(torch.equal(one, two) for one, two in zip(tensors(first), tensors(before), strict=True))


@torch.no_grad()
def test_program_follows_new_weights_and_conversions():
    deployed, other = trained().deploy(), trained(seed=1).deploy()
    images = torch.randn(1, 1, 64, 64)
    old = deployed(images)
    deployed.load_state_dict(other.state_dict())
    new = deployed(images)
    assert not torch.equal(old.logits[0], new.logits[0])
    assert torch.equal(new.logits[0], other(images).logits[0])
    deployed.network.backbone.stages[0][0].double()  # one part alone, below the deployed network
    deployed.network.backbone.stages[0][0].float()
    assert torch.equal(new.logits[0], deployed(images).logits[0])


@torch.no_grad()
def test_hooks_of_layers_are_called():
    deployed, seen = trained().deploy(), []
    images = torch.randn(1, 1, 64, 64)
    expected = deployed(images)
    handle = deployed.network.backbone.stages[1][0].register_forward_hook(lambda module, args, out: seen.append(out))
    assert torch.equal(deployed(images).logits[0], expected.logits[0]) and len(seen) == 1
    handle.remove()
    deployed(images)
    assert len(seen) == 1


@torch.no_grad()
def test_replaced_layers_are_used():
    deployed, other = trained().deploy(), trained(seed=1).deploy()
    images = torch.randn(1, 1, 64, 64)
    old = deployed(images)
    deployed.network.head.towers[0] = other.network.head.towers[0]
    new = deployed(images)
    assert not torch.equal(old.logits[0], new.logits[0]) and torch.equal(old.logits[1], new.logits[1])
    assert torch.equal(new.logits[0], layer_by_layer(deployed, images).logits[0])


@torch.no_grad()
def test_program_follows_added_layers_and_changed_options():
    deployed = trained().deploy()
    images = torch.randn(1, 1, 64, 64)
    before = deployed(images).logits[3]
    deployed.network.backbone.stages[3][-1].scale = 2.0
    scaled = deployed(images).logits[3]
    assert not torch.equal(before, scaled)
    deployed.network.backbone.stages[3].append(copy.deepcopy(deployed.network.backbone.stages[3][-1]))
    longer = deployed(images).logits[3]
    assert not torch.equal(scaled, longer)
    assert torch.equal(longer, layer_by_layer(deployed, images).logits[3])


@torch.no_grad()
def test_other_forward_functions_are_called():
    deployed = trained().deploy()
    images = torch.randn(1, 1, 64, 64)
    expected = deployed(images).logits[0]
    head = deployed.network.head
    head.forward = lambda features, forward=head.forward: ([2 * x for x in forward(features)[0]], forward(features)[1])
    assert torch.equal(deployed(images).logits[0], 2 * expected)
    assert program_of(deployed.network) is None


def test_instructions_are_those_of_the_header():
    header = (Path(__file__).parents[2] / "csrc/program/program.h").read_text()
    names = re.search(r"enum Instruction : int64_t {(.*?)}", header)[1].replace(" ", "").split(",")
    assert names == ["kConvolve", "kNarrow", "kSafem", "kAcfaWeight", "kFree"]
    instructions = [program.CONVOLVE, program.NARROW, program.SAFEM, program.ACFA_WEIGHT, program.FREE]
    assert instructions == list(range(5))
    dtypes = re.findall(r"ScalarType::(\w+)", re.search(r"kDTypes\[\] = {(.*?)}", header)[1])
    assert dtypes == ["Float", "BFloat16", "Half", "Double"]
    expected = torch.float32, torch.bfloat16, torch.float16, torch.float64
    assert expected == program.DTYPES


@torch.no_grad()
def test_copy_of_a_deployed_network_has_its_own_program():
    deployed = trained().deploy()
    images = torch.randn(1, 1, 64, 64)
    expected = deployed(images)
    other = copy.deepcopy(deployed)
    other.network.head.towers[0].classify.bias.add_(1)
    assert torch.equal(deployed(images).logits[0], expected.logits[0])
    torch.testing.assert_close(other(images).logits[0], expected.logits[0] + 1)


@pytest.mark.parametrize("options", [{"literal_acfa": True}, {"acfa": False}])
@torch.no_grad()
def test_networks_without_a_program_run_layer_by_layer(options):
    config = ModelConfig(name="danet_nano", classes=["drone"], **options)
    deployed = trained(config).deploy()
    assert program_of(deployed.network) is None
    images = torch.randn(1, 1, 64, 64)
    assert torch.equal(deployed(images).logits[0], layer_by_layer(deployed, images).logits[0])


@torch.no_grad()
def test_flop_counter_still_sees_every_layer():
    deployed = trained().deploy()
    images = torch.randn(1, 1, 64, 64)
    deployed(images)
    with FlopCounterMode(display=False) as counter:
        deployed(images)
    with FlopCounterMode(display=False) as expected:
        layer_by_layer(deployed, images)
    assert counter.get_total_flops() == expected.get_total_flops() > 1e6


@torch.no_grad()
def test_wrong_image_sizes_have_the_same_error():
    deployed = trained().deploy()
    with pytest.raises(ValueError, match=r"DANet: images must be \[N, 1, H, W\] with H, W >= 32"):
        deployed(torch.zeros(1, 1, 31, 64))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ([0], "the program ends within an instruction"),
        ([7, 1], "7 is not an instruction"),
        ([0, 1, 0, 5, -1, -1, 1, 1, -1, 0, -1], "the index 5 is out of range"),
        ([0, 9, 0, 0, -1, -1, 1, 1, -1, 0, -1], "the index 9 is out of range"),
        ([1, 1, 2, 0, 1], "an instruction reads a value that does not exist"),
        ([0, 1, 0, 0, -1, -1, 3, 1, -1, 0, -1], "rep_conv: stride must be 1 or 2"),
    ],
)
def test_malformed_programs_are_refused(code, text):
    image, weight = torch.zeros(1, 1, 8, 8), torch.zeros(4, 1, 3, 3)
    with pytest.raises(RuntimeError, match=text):
        torch.ops.danet.run_program(image, [weight], code, [], 3, [0], False)
