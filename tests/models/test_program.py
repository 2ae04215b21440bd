"""The CPU program of a deployed network: it computes what the network computes when it is called layer by layer."""

import copy
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from danet.config import ModelConfig
from danet.models import build_model, program
from danet.models.program import CpuProgram, program_of
from danet.ops import info

pytestmark = pytest.mark.skipif(info()["operators"] != "compiled", reason="the operators are not compiled")

SMAPS = Path("/proc/self/smaps")
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


def test_threads_with_networks_and_images_of_several_sizes(num_threads):
    num_threads(2)
    networks = [trained(seed=seed).deploy(dtype=dtype) for seed in range(2) for dtype in dtypes()]
    images = [torch.randn(shape) for shape in [(1, 1, 64, 96), (1, 1, 160, 128), (2, 1, 33, 71)]]
    calls = [(deployed, each) for deployed in networks for each in images] * 3
    expected = [run_without_grad(*call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda call: run_without_grad(*call), calls))
    for one, two in zip(results, expected, strict=True):
        assert all(map(torch.equal, tensors(one), tensors(two)))


@torch.no_grad()
def test_results_of_an_earlier_call_are_not_overwritten():
    for dtype in dtypes():
        deployed = trained().deploy(dtype=dtype)
        first = deployed(torch.randn(1, 1, 64, 64))
        before = copy.deepcopy(first)
        deployed(torch.randn(1, 1, 64, 64))
        assert all(map(torch.equal, tensors(first), tensors(before)))


@pytest.mark.skipif(info()["matrix_unit"] != "AMX", reason="without AMX, torch computes and converts some values")
@torch.no_grad()
def test_torch_allocates_only_the_results():
    deployed = trained(ModelConfig(name="danet_s")).deploy(dtype=torch.bfloat16)
    deployed(torch.randn(1, 1, 64, 96))
    images = torch.randn(1, 1, 64, 96, dtype=deployed.input_dtype).contiguous(memory_format=torch.channels_last)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        output = deployed.program(images)
    calls = {event.key: event.count for event in profiled.key_averages() if event.key.startswith("aten::")}
    assert calls == {"aten::empty": len(tensors(output))}


def arena_bytes():
    """The memory that is kept for values of programs. No other memory of this process has advice for huge pages."""
    if not SMAPS.exists():
        return 0
    mappings = re.findall(r"^Size: +(\d+) kB$.*?^VmFlags:(.*?)$", SMAPS.read_text(), re.DOTALL | re.MULTILINE)
    return 1024 * sum(int(size) for size, flags in mappings if " hg" in flags)


@torch.no_grad()
def test_memory_is_constant_and_follows_the_image_size():
    deployed = trained().deploy(dtype=dtypes()[-1])
    small, large = torch.randn(1, 1, 64, 64), torch.randn(1, 1, 1024, 1024)

    def arena_bytes_after(images, calls):
        for _ in range(calls):
            deployed(images)
        return arena_bytes()

    # The memory for large images is kept between them, and is given back after many small images.
    with_large = arena_bytes_after(large, 3)
    if with_large == 0:
        pytest.skip("needs Linux with huge pages")
    assert arena_bytes_after(large, 5) == arena_bytes_after(small, 5) == arena_bytes_after(large, 1) == with_large
    with_small = arena_bytes_after(small, 16)
    assert with_small <= with_large - 4 * 2**20
    assert arena_bytes_after(small, 20) == with_small


@torch.no_grad()
def test_memory_that_is_kept_is_bounded():
    deployed = trained().deploy(dtype=dtypes()[-1])
    deployed(torch.randn(1, 1, 64, 64))
    before = arena_bytes()
    if before == 0:
        pytest.skip("needs Linux with huge pages")
    images = torch.randn(1, 1, 2048, 3072)
    output = deployed(images)
    assert arena_bytes() <= before + 64 * 2**20
    assert all(map(torch.equal, tensors(deployed(images)), tensors(output)))


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
