"""The kernels and sizes that the model predicts, each with its budget."""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu_model import model
from benchmarks.gpu_model.kernels import FOLDER, ROOT, MachineCode, compile_cubin
from benchmarks.gpu_model.sampling import some_blocks
from danet.ops.fused_safem import pack_for_cuda

FULL, HALF = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Budget:
    """What an H200 must reach, as the model predicts it.

    ``share``: the bytes that must be moved, divided by the time and by the bandwidth of a large copy, at least.
    ``microseconds``: the time of all launches of the call, at most. ``imbalance``: instructions of the busiest
    sub-core divided by the mean, at most. ``read_megabytes``: sectors that the L1 caches read, at most.
    """

    share: float | None = None
    microseconds: float | None = None
    imbalance: float | None = None
    read_megabytes: float | None = None


@dataclass(frozen=True)
class Case:
    """One call: its name, the call itself, the bytes that device memory must move, and its budget."""

    name: str
    call: Callable[[], object]
    dram_bytes: float
    budget: Budget


@dataclass
class Result:
    """The prediction for one case."""

    case: Case
    counts: list[model.Counts]
    predictions: dict[str, list[model.Prediction]]

    def seconds(self, device: model.Device) -> float:
        """The predicted time of all launches of the call."""
        return sum(prediction.seconds for prediction in self.predictions[device.name])

    def share(self, device: model.Device) -> float:
        """The bytes that must be moved, divided by the time and by the bandwidth of a large copy."""
        return self.case.dram_bytes / self.seconds(device) / device.copy_rate

    def failures(self) -> list[str]:
        """What exceeds the budget on an H200."""
        budget, main = self.case.budget, self.counts[0]
        checks = [
            ("share", budget.share, self.share(model.H200), -1),
            ("microseconds", budget.microseconds, self.seconds(model.H200) * 1e6, 1),
            ("imbalance of the sub-cores", budget.imbalance, main.imbalance, 1),
            ("read megabytes", budget.read_megabytes, main.read_bytes * main.blocks / 1e6, 1),
        ]
        return [
            f"{self.case.name}: {name} {value:.2f}, the budget is {limit}"
            for name, limit, value, sign in checks
            if limit is not None and sign * value > sign * limit
        ]


def image(*sizes: int, dtype: torch.dtype) -> Tensor:
    """Random values in channels-last layout."""
    return torch.randn(*sizes).to(dtype, memory_format=torch.channels_last)


def sdc_case(direction: str, dtype: torch.dtype, budget: Budget) -> Case:
    """SDC at N = 8, C = 64, 128 x 160, G = 4, K = 9, with offsets of one pixel (standard deviation)."""
    N, C, H, W, G, K = 8, 64, 128, 160, 4, 9
    predicted = image(N, 3 * G * K, H, W, dtype=dtype)
    x, offset, mask = image(N, C, H, W, dtype=dtype), predicted[:, : 2 * G * K], predicted[:, 2 * G * K :]
    options = (G, 3, 3, 1, 1, 1, 1, 1, 1, 1.0, True, False)
    operators, bytes = torch.ops.danet_emulated, float(dtype.itemsize * N * H * W * (2 * C + 3 * G * K))
    name = f"sdc {direction} {str(dtype)[6:]}"
    if direction == "forward":
        return Case(name, lambda: operators.sdc(x, offset, mask, *options), bytes, budget)
    grad = image(N, C, H, W, dtype=dtype)
    return Case(name, lambda: operators.sdc_backward(grad, x, offset, mask, *options, False), 2 * bytes, budget)


def lcdc_case(direction: str, dtype: torch.dtype, budget: Budget) -> Case:
    """LCDC with gate at N = 32, C = 64, 128 x 160, k = 3."""
    x, weight = image(32, 64, 128, 160, dtype=dtype), torch.randn(1, 3).to(dtype)
    operators, name = torch.ops.danet_emulated, f"lcdc {direction} {str(dtype)[6:]}"
    if direction == "forward":
        return Case(name, lambda: operators.lcdc(x, weight, True), 2.0 * x.nbytes, budget)
    grad = image(*x.shape, dtype=dtype)
    return Case(name, lambda: operators.lcdc_backward(grad, x, weight, True), 3.0 * x.nbytes, budget)


def softmax_gate_case(direction: str, dtype: torch.dtype, budget: Budget) -> Case:
    """The softmax gate at N = 32, C = 64, 128 x 160."""
    x, logits = (image(32, 64, 128, 160, dtype=dtype) for _ in range(2))
    operators, name = torch.ops.danet_emulated, f"softmax_gate {direction} {str(dtype)[6:]}"
    if direction == "forward":
        return Case(name, lambda: operators.softmax_gate(x, logits), 3.0 * x.nbytes, budget)
    grad = image(*x.shape, dtype=dtype)
    return Case(name, lambda: operators.softmax_gate_backward(grad, x, logits), 5.0 * x.nbytes, budget)


def stage_3_case(dtype: torch.dtype, budget: Budget) -> Case:
    """One layer of stage 3 for one image: 256 channels, 16 x 20. The L2 cache holds its 1.5 MB."""
    x, weight, bias = image(1, 256, 16, 20, dtype=dtype), image(256, 256, 3, 3, dtype=dtype), torch.zeros(256).to(dtype)

    def call() -> object:
        return torch.ops.danet_emulated.rep_conv(x, weight, None, bias, 1, True, False)

    return Case(f"rep_conv stage 3 N=1 {str(dtype)[6:]}", call, 0.0, budget)


def ms_deform_attn_case(queries: str, direction: str, dtype: torch.dtype, budget: Budget) -> Case:
    """Multi-scale deformable attention of Deformable DETR for two images of 800 x 800 pixels.

    The locations and weights are float32. A query of the encoder samples the pixels around its own pixel (standard
    deviation: two pixels), and one of the 300 queries of the decoder samples anywhere.
    """
    N, M, D, P = 2, 8, 32, 4
    shapes = torch.tensor([[100, 100], [50, 50], [25, 25], [13, 13]])
    counts = shapes.prod(1)
    starts, L, S = counts.cumsum(0) - counts, len(shapes), int(counts.sum())
    if queries == "encoder":
        centers = [
            torch.cartesian_prod(*((torch.arange(n) + 0.5) / n for n in pair)).flip(1) for pair in shapes.tolist()
        ]
        offsets = 2 * torch.randn(N, S, M, L, P, 2) / shapes.flip(1).view(L, 1, 2)
        locations = torch.cat(centers).view(1, S, 1, 1, 1, 2) + offsets
    else:
        locations = torch.rand(N, 300, M, L, P, 2)
    Q = locations.shape[1]
    value, weights, grad = torch.randn(N, S, M, D).to(dtype), torch.rand(N, Q, M, L, P), torch.randn(N, Q, M * D)
    arguments = (value, locations, weights, shapes, starts, False)
    operators, name = torch.ops.danet_emulated, f"ms_deform_attn {queries} {direction} {str(dtype)[6:]}"
    points, out = float(locations.nbytes + weights.nbytes), dtype.itemsize * N * Q * M * D
    if direction == "forward":
        return Case(name, lambda: operators.ms_deform_attn(*arguments), points + value.nbytes + out, budget)
    grad = grad.to(dtype)
    bytes = 2 * points + value.nbytes + 4.0 * value.numel() + out  # sums of the gradient of value in float32
    return Case(name, lambda: operators.ms_deform_attn_backward(grad, *arguments, False), bytes, budget)


def safem_weights(C: int, dtype: torch.dtype) -> Tensor:
    """The packed weights of a SaFEM with four groups."""
    shapes = (C, 1, 3, 3), (C,), (108, C, 1, 1), (108,), (2 * C, C, 1, 1), (2 * C,), (C, 2 * C, 1, 1), (C,)
    return pack_for_cuda([(torch.randn(shape) / C**0.5).to(dtype) for shape in shapes])


def safem_case(C: int, H: int, W: int, dtype: torch.dtype, budget: Budget) -> Case:
    """A SaFEM of the backbone of danet, for one image. The L2 cache holds its tensors."""
    x, weights = image(1, C, H, W, dtype=dtype), safem_weights(C, dtype)

    def call() -> object:
        return torch.ops.danet_emulated.safem(x, weights, None, None, 4, 1.0)

    return Case(f"safem C={C} {H}x{W} {str(dtype)[6:]}", call, 0.0, budget)


def acfa_weight_case(H: int, W: int, dtype: torch.dtype, budget: Budget) -> Case:
    """The channel weights of one level of the neck of danet, for one image. The L2 cache holds its tensors."""
    x, weights = image(1, 64, H, W, dtype=dtype), safem_weights(64, dtype)

    def call() -> object:
        return torch.ops.danet_emulated.acfa_weight(x, weights, 4)

    return Case(f"safem acfa_weight {H}x{W} {str(dtype)[6:]}", call, 0.0, budget)


CASES: dict[str, Callable[[], Case]] = {
    "sdc forward bfloat16": lambda: sdc_case("forward", HALF, Budget(share=0.38, imbalance=1.1, read_megabytes=115)),
    "sdc forward float32": lambda: sdc_case("forward", FULL, Budget(share=0.50, imbalance=1.1, read_megabytes=230)),
    "sdc backward bfloat16": lambda: sdc_case("backward", HALF, Budget(share=0.13, imbalance=1.1)),
    "sdc backward float32": lambda: sdc_case("backward", FULL, Budget(share=0.22, imbalance=1.1)),
    "lcdc forward bfloat16": lambda: lcdc_case("forward", HALF, Budget(share=0.85)),
    "lcdc forward float32": lambda: lcdc_case("forward", FULL, Budget(share=0.85)),
    "lcdc backward bfloat16": lambda: lcdc_case("backward", HALF, Budget(share=0.75)),
    "lcdc backward float32": lambda: lcdc_case("backward", FULL, Budget(share=0.75)),
    "softmax_gate forward bfloat16": lambda: softmax_gate_case("forward", HALF, Budget(share=0.85)),
    "softmax_gate forward float32": lambda: softmax_gate_case("forward", FULL, Budget(share=0.85)),
    "softmax_gate backward bfloat16": lambda: softmax_gate_case("backward", HALF, Budget(share=0.85)),
    "softmax_gate backward float32": lambda: softmax_gate_case("backward", FULL, Budget(share=0.85)),
    "rep_conv stage 3 N=1 bfloat16": lambda: stage_3_case(HALF, Budget(microseconds=3.5)),
    **{
        f"ms_deform_attn {queries} {direction} {str(dtype)[6:]}": functools.partial(
            ms_deform_attn_case, queries, direction, dtype, budget
        )
        for queries, direction, dtype, budget in (
            ("encoder", "forward", HALF, Budget(microseconds=125, imbalance=1.1, read_megabytes=600)),
            ("encoder", "forward", FULL, Budget(microseconds=240, imbalance=1.1, read_megabytes=1150)),
            ("encoder", "backward", HALF, Budget(microseconds=740, imbalance=1.1)),
            ("encoder", "backward", FULL, Budget(microseconds=780, imbalance=1.1)),
            ("decoder", "forward", HALF, Budget(microseconds=9.5)),
            ("decoder", "forward", FULL, Budget(microseconds=9)),
            ("decoder", "backward", HALF, Budget(microseconds=37)),
            ("decoder", "backward", FULL, Budget(microseconds=36)),
        )
    },
    "safem C=64 64x80 bfloat16": lambda: safem_case(64, 64, 80, HALF, Budget(microseconds=10)),
    "safem C=128 32x40 bfloat16": lambda: safem_case(128, 32, 40, HALF, Budget(microseconds=11)),
    "safem C=256 16x20 bfloat16": lambda: safem_case(256, 16, 20, HALF, Budget(microseconds=12)),
    "safem C=512 8x10 bfloat16": lambda: safem_case(512, 8, 10, HALF, Budget(microseconds=16)),
    "safem acfa_weight 32x40 bfloat16": lambda: acfa_weight_case(32, 40, HALF, Budget(microseconds=13)),
}
"""The cases by name. Building a case allocates its tensors."""


def operator_of(name: str) -> str:
    """The operator of a case: the folder of its kernels in csrc."""
    return name.split()[0]


def compile_operators(operators: Iterable[str], folder: Path = FOLDER) -> MachineCode:
    """The kernels of some operators. They are compiled only if the folder has no up-to-date result."""
    return MachineCode([compile_cubin(ROOT / f"csrc/{name}/{name}_cuda.cu", folder) for name in operators])


def predict(case: Case, code: MachineCode) -> Result:
    """Run one case on machine code and predict its time."""
    torch.manual_seed(0)
    with code.running(some_blocks) as executions:
        case.call()
    counts = [model.count(execution) for execution in executions]
    moved = [case.dram_bytes if number == 0 else 0.0 for number in range(len(counts))]
    predictions = {
        device.name: [model.predict(each, device, bytes) for each, bytes in zip(counts, moved, strict=True)]
        for device in (model.H100, model.H200)
    }
    return Result(case, counts, predictions)


def rows(results: list[Result]) -> Iterator[str]:
    """The lines of the table."""
    yield (
        f"{'kernel and case':<32}{'H100 us':>9}{'H200 us':>9}{'share':>7}  {'bottleneck':<14}"
        f"{'registers':>9}{'blocks/SM':>10}{'worst core':>11}{'L1 cycles':>10}{'L2 MB':>7}"
    )
    for result in results:
        main = result.counts[0]
        yield (
            f"{result.case.name:<32}{result.seconds(model.H100) * 1e6:>9.1f}{result.seconds(model.H200) * 1e6:>9.1f}"
            f"{result.share(model.H200):>7.0%}  {result.predictions['H200'][0].bottleneck:<14}"
            f"{main.registers:>9}{main.resident_blocks:>10}{main.imbalance:>11.2f}"
            f"{main.wavefronts:>10.0f}{main.read_bytes * main.blocks / 1e6:>7.0f}"
        )
