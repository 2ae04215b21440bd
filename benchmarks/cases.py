"""The cases that ``benchmarks.ops`` measures on the CPU. ``benchmarks.cuda`` uses some of them too."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks import baselines
from danet.ops import (
    dcnv3,
    dcnv4,
    deform_conv2d,
    deform_conv2d_reference,
    lcdc,
    lcdc_reference,
    ms_deform_attn,
    ms_deform_attn_reference,
    prepare_rep_conv,
    rep_conv,
    rep_conv_reference,
    sdc,
    sdc_reference,
    softmax_gate,
    softmax_gate_reference,
)

Function = Callable[[], object]


@dataclass
class Case:
    """One row of the table: our function, its baselines, its minimum cost in FLOP and bytes, and its correctness
    check."""

    operator: str
    name: str
    direction: str
    ours: Function
    baselines: dict[str, Function | None]
    flops: float
    bytes: float
    check: Callable[[], tuple[Tensor, Tensor, float]]  # our result, the expected result, the largest error allowed
    times: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)  # by function; if "ours" has an error, nothing is timed

    def forget(self) -> None:
        """Releases the tensors of the case."""
        del self.ours, self.baselines, self.check


def image(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """A random channels-last tensor on the default device."""
    return (torch.randn(shape) * scale).to(dtype=dtype, memory_format=torch.channels_last)


def backward_of(function: Callable[..., Tensor], leaves: list[Tensor]) -> Function:
    """The backward pass alone. The first call builds the graph, later calls reuse it."""

    @functools.cache
    def graph() -> tuple[Tensor, list[Tensor], Tensor]:
        own = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in leaves]
        with torch.enable_grad():
            out = function(*own)
        grad_output = torch.randn(out.shape, device="cpu", generator=torch.Generator().manual_seed(7))
        return out, own, torch.empty_like(out).copy_(grad_output)  # in the memory format of each function's own result

    def run() -> tuple[Tensor, ...]:
        out, own, grad_output = graph()
        return torch.autograd.grad(out, own, grad_output, retain_graph=True)

    return run


def both_of(function: Callable[..., Tensor], leaves: list[Tensor]) -> Function:
    """Forward and backward pass together."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in leaves]
    grad_output = torch.ones(function(*leaves).shape).contiguous(memory_format=torch.channels_last)
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad_output)


def same(ours: Function, reference: Function, tolerance: float) -> Callable[[], tuple[Tensor, Tensor, float]]:
    """A check that compares all results of ours with those of the reference."""

    def check():
        pair = []
        for function in (ours, reference):
            result = function()
            result = result if isinstance(result, tuple) else (result,)
            pair.append(torch.cat([t.detach().flatten().double() for t in result]))
        return *pair, tolerance

    return check


def sdc_cases() -> Iterator[Case]:
    for N, C, H, W in ((1, 64, 64, 80), (1, 128, 32, 40), (1, 256, 16, 20), (2, 128, 56, 56)):
        G, K = 4, 9
        predicted = image(N, 3 * G * K, H, W)  # one convolution predicts offsets and logits, as in the SDC module
        leaves = [image(N, C, H, W), predicted[:, : 2 * G * K], predicted[:, 2 * G * K :]]
        flops, bytes = 8.0 * N * C * H * W * K, 4.0 * N * H * W * (2 * C + 3 * G * K)

        def ours(*t: Tensor) -> Tensor:
            return sdc(*t, groups=4)

        def reference(*t: Tensor) -> Tensor:
            return sdc_reference(*t, groups=4)

        def grid_sample(*t: Tensor) -> Tensor:
            return baselines.sdc_grid_sample(*t, groups=4)

        functions = {"sdc_reference": reference, "grid_sample": grid_sample}
        size = f"{N}x{C}x{H}x{W} G4"
        if N > 1:
            both = {name: both_of(f, leaves) for name, f in functions.items()}
            call = both_of(ours, leaves)
            yield Case("sdc", size, "both", call, both, 3 * flops, 3 * bytes, same(call, both["sdc_reference"], 1e-3))
            continue
        forward = {name: lambda f=f, t=leaves: f(*t) for name, f in functions.items()}
        forward["onnxruntime"] = baselines.onnxruntime_deform_conv(*leaves)
        call = lambda f=ours, t=leaves: f(*t)  # noqa: E731
        yield Case("sdc", size, "forward", call, forward, flops, bytes, same(call, forward["sdc_reference"], 1e-4))
        backward = {name: backward_of(f, leaves) for name, f in functions.items()}
        call = backward_of(ours, leaves)
        check = same(call, backward["sdc_reference"], 1e-3)
        yield Case("sdc", size, "backward", call, backward, 2 * flops, 2 * bytes, check)


def dcn_cases() -> Iterator[Case]:
    """``dcnv3`` and ``dcnv4`` beside ``sdc``: the cost of another order of taps, coordinates and groups."""
    G, K = 4, 9
    for C, H, W in ((64, 64, 80), (128, 32, 40)):
        input, offset, mask = torch.randn(1, H, W, C), torch.randn(1, H, W, 2 * G * K), torch.randn(1, H, W, G * K)
        groups = torch.cat([offset.unflatten(3, (G, 2 * K)), mask.unflatten(3, (G, K))], 4).flatten(3)
        windows = (3, 3, 1, 1, 1, 1, 1, 1, G, C // G, 1.0)

        def turned(*t: Tensor) -> Tensor:
            """The reference: DCNv3's order of taps is that of sdc on transposed images."""
            return sdc_reference(*(each.permute(0, 3, 2, 1) for each in t), groups=4, softmax=False).permute(0, 3, 2, 1)

        def ours_v3(*t: Tensor, windows: tuple = windows) -> Tensor:
            return dcnv3(*t, *windows)

        def ours_v4(*t: Tensor, windows: tuple = windows) -> Tensor:
            return dcnv4(*t, *windows)

        def plain(*t: Tensor) -> Tensor:
            return sdc(*t, groups=4, softmax=False)

        images = [each.permute(0, 3, 1, 2) for each in (input, offset, mask)]
        flops, bytes = 8.0 * C * H * W * K, 4.0 * H * W * (2 * C + 3 * G * K)
        for name, ours, leaves in (("dcnv3", ours_v3, [input, offset, mask]), ("dcnv4", ours_v4, [input, groups])):
            size = f"1x{C}x{H}x{W} G4 {name}"
            for direction, wrap in (("forward", lambda f, t: lambda: f(*t)), ("backward", backward_of)):
                # Compare the forward result only: DCNv4's gradients have another order than sdc's; tests cover them.
                images_of = (input, offset, mask)
                check = same(lambda f=ours, t=leaves: f(*t), lambda f=turned, t=images_of: f(*t), 1e-4)
                call, factor = wrap(ours, leaves), 1 if direction == "forward" else 2
                others = {"sdc": wrap(plain, images)}
                yield Case("dcn", size, direction, call, others, factor * flops, factor * bytes, check)


def deform_conv_cases(N: int = 1, dtype: torch.dtype = torch.float32) -> Iterator[Case]:
    """Dense, depth-wise and grouped layers of ``deform_conv2d``, with a mask, beside torchvision and ONNX Runtime."""
    layers = (
        # C, C_out, H, W, offset groups, weight groups
        (32, 32, 64, 80, 1, 1),
        (64, 64, 64, 80, 1, 1),
        (128, 128, 32, 40, 4, 1),
        (256, 256, 32, 40, 1, 1),
        (256, 256, 16, 20, 1, 1),
        (512, 512, 8, 10, 1, 1),
        (64, 64, 64, 80, 4, 64),
        (128, 128, 32, 40, 4, 128),
        (64, 64, 64, 80, 1, 4),
    )
    for C, C_out, H, W, G, groups in layers:
        K = 9
        leaves = [image(N, C, H, W, dtype=dtype), image(N, 2 * G * K, H, W, dtype=dtype), torch.rand(N, G * K, H, W)]
        leaves[2] = leaves[2].to(dtype, memory_format=torch.channels_last)
        leaves.append((torch.randn(C_out, C // groups, 3, 3) * 0.1).to(dtype))
        planes = [t.contiguous() for t in leaves]  # the layout that torchvision computes in

        def ours(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
            return deform_conv2d(x, offset, weight, padding=1, mask=mask)

        def reference(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
            return deform_conv2d_reference(x, offset, weight, padding=1, mask=mask)

        kind = "dense" if groups == 1 else "depth-wise" if groups == C else f"{groups} groups"
        size = f"{N}x{C}x{H}x{W} to {C_out} {kind} G{G}" + ("" if dtype == torch.float32 else f" {str(dtype)[6:]}")
        flops = 2.0 * N * C * H * W * K * (4 + C_out / groups)
        bytes = dtype.itemsize * float(N * H * W * (C + C_out + 3 * G * K) + leaves[3].numel())
        for direction, wrap in (("forward", lambda f, t: lambda: f(*t)), ("backward", backward_of)):
            factor, tolerance = (1, 2e-3) if direction == "forward" else (2, 2e-2)
            tolerance *= 1 if dtype == torch.float32 else 50
            others: dict[str, Function | None] = {}
            if (torchvision := baselines.torchvision_deform_conv2d(dtype)) is not None:
                others["torchvision"] = wrap(torchvision, planes)
            if direction == "forward" and dtype == torch.float32:
                others["onnxruntime"] = baselines.onnxruntime_deform_conv(*leaves)
            call = wrap(ours, leaves)
            check = same(call, wrap(reference, leaves), tolerance)
            yield Case("deform_conv", size, direction, call, others, factor * flops, factor * bytes, check)


def ms_deform_attn_cases(N: int = 1, dtype: torch.dtype = torch.float32) -> Iterator[Case]:
    """Encoder and decoder of Deformable DETR for an image of 800 x 800 pixels; locations and weights in float32.

    Every pixel of the encoder samples the pixels around it; the queries of the decoder sample anywhere.
    """
    shapes = [(100, 100), (50, 50), (25, 25), (13, 13)]
    counts = [H * W for H, W in shapes]
    levels, starts = torch.tensor(shapes), torch.tensor([sum(counts[:i]) for i in range(len(counts))])
    S, L, M, D, P = sum(counts), len(shapes), 8, 32, 4
    centers = torch.cat([torch.cartesian_prod(*((torch.arange(n) + 0.5) / n for n in pair)).flip(1) for pair in shapes])
    sides = levels.flip(1).view(L, 1, 2)  # (W, H)
    around = centers.view(1, S, 1, 1, 1, 2) + 2 * torch.randn(N, S, M, L, P, 2) / sides
    for name, locations in (("encoder", around), ("decoder", torch.rand(N, 300, M, L, P, 2))):
        # Move the samples away from whole pixels, where the gradients of locations jump.
        cell = (locations * sides).floor()
        locations = (cell + 0.6 + 0.8 * (locations * sides - cell)) / sides
        Q = locations.shape[1]
        leaves = [torch.randn(N, S, M, D).to(dtype), locations, torch.rand(N, Q, M, L, P)]

        def ours(*t: Tensor) -> Tensor:
            return ms_deform_attn(t[0], levels, starts, t[1], t[2])

        def reference(*t: Tensor) -> Tensor:
            return ms_deform_attn_reference(t[0], levels, starts, t[1], t[2])

        def grid_sample(*t: Tensor) -> Tensor:
            return baselines.ms_deform_attn_grid_sample(*t, shapes=shapes)

        elements = N * M * D * (S + Q), N * M * Q * 3 * L * P
        flops, bytes = 8.0 * N * Q * M * L * P * D, dtype.itemsize * elements[0] + 4.0 * elements[1]
        for direction, wrap in (("forward", lambda f, t: lambda: f(*t)), ("backward", backward_of)):
            call, factor = wrap(ours, leaves), 1 if direction == "forward" else 2
            others: dict[str, Function | None] = {"grid_sample": wrap(grid_sample, leaves)}
            check = same(call, wrap(reference, leaves), 5e-2 if dtype == torch.float32 else 1.0)
            size = f"{name} {N}x{Q} M{M} L{L} P{P} D{D}" + ("" if dtype == torch.float32 else f" {str(dtype)[6:]}")
            yield Case("ms_deform_attn", size, direction, call, others, factor * flops, factor * bytes, check)


def lcdc_cases() -> Iterator[Case]:
    for C, H, W, k in ((64, 64, 80, 3), (128, 32, 40, 3), (256, 16, 20, 5)):
        leaves = [image(1, C, H, W), torch.randn(1, k)]

        def ours(*t: Tensor) -> Tensor:
            return lcdc(*t, gate=True)

        functions = {"shifted": baselines.lcdc_shifted, "conv1d": baselines.lcdc_conv1d}
        reference = lambda *t: lcdc_reference(*t, gate=True)  # noqa: E731
        flops, bytes = 2.0 * C * H * W * (k + 4), 8.0 * C * H * W
        for direction, wrap in (("forward", lambda f, t: lambda: f(*t)), ("backward", backward_of)):
            call, factor = wrap(ours, leaves), 1 if direction == "forward" else 3
            others = {name: wrap(f, leaves) for name, f in functions.items()}
            check = same(call, wrap(reference, leaves), 1e-2)
            size = f"1x{C}x{H}x{W} k{k} gate"
            yield Case("lcdc", size, direction, call, others, factor * flops, factor * bytes, check)


def softmax_gate_cases() -> Iterator[Case]:
    for C, H, W in ((64, 64, 80), (128, 32, 40), (256, 16, 20)):
        leaves = [image(1, C, H, W), image(1, C, H, W)]
        functions = {"eager": baselines.softmax_gate_eager, "softmax_gate_reference": softmax_gate_reference}
        for direction, wrap in (("forward", lambda f, t: lambda: f(*t)), ("backward", backward_of)):
            call, factor = wrap(softmax_gate, leaves), 1 if direction == "forward" else 2
            others = {name: wrap(f, leaves) for name, f in functions.items()}
            check = same(call, others["softmax_gate_reference"], 1e-4)
            size, flops, bytes = f"1x{C}x{H}x{W}", 5.0 * C * H * W, 12.0 * C * H * W
            yield Case("softmax_gate", size, direction, call, others, factor * flops, factor * bytes, check)


def rep_conv_cases() -> Iterator[Case]:
    for H, W in ((256, 320), (512, 640)):
        for stage, (C, layers) in enumerate(((64, 4), (128, 6), (256, 16)), 1):
            size = (1, C, H >> stage + 1, W >> stage + 1)
            yield rep_conv_case(size, C, layers=1)
            yield rep_conv_case(size, C, layers=layers)
            yield rep_conv_case((1, C, size[2], size[3]), 2 * C, layers=1, stride=2)
    # The layers of danet_s (32 channels in the first stage) and danet (64) for images of 256 x 320, in bfloat16
    for first in (32, 64):
        yield rep_conv_case((1, first, 128, 160), first, layers=1, stride=2, dtype=torch.bfloat16)
        for stage in range(4):
            C, H, W = first << stage, 64 >> stage, 80 >> stage
            yield rep_conv_case((1, C, H, W), C, layers=1, dtype=torch.bfloat16)
            if stage < 3:
                yield rep_conv_case((1, C, H, W), 2 * C, layers=1, stride=2, dtype=torch.bfloat16)


def rep_conv_case(
    size: tuple[int, ...], C_out: int, *, layers: int, stride: int = 1, dtype: torch.dtype = torch.float32
) -> Case:
    """A chain of ``layers`` convolutions, each with its own weights; in bfloat16 on the CPU also beside float32."""
    N, C, H, W = size
    input = image(*size, dtype=dtype)
    weights = [image(C_out, C, 3, 3, dtype=dtype, scale=(2 / (9 * C)) ** 0.5) for _ in range(layers)]
    biases = [torch.randn(C_out).to(dtype) * 0.1 for _ in range(layers)]
    prepared = [prepare_rep_conv(weight, stride=stride) for weight in weights]

    def chain(function: Callable, kernels: list, input: Tensor = input, biases: list = biases) -> Function:
        def run() -> Tensor:
            x = input
            for kernel, bias in zip(kernels, biases, strict=True):
                x = function(x, kernel, bias, stride=stride)
            return x

        return run

    def check() -> tuple[Tensor, Tensor, float]:
        exact = input.double()
        for weight, bias in zip(weights, biases, strict=True):
            exact = rep_conv_reference(exact, weight.double(), bias.double(), stride=stride)
        result = ours().double()
        norm = exact.norm()
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-3 if input.is_cuda else 1e-5  # TF32 on CUDA
        return result / norm, exact / norm, tolerance

    ours = chain(rep_conv, prepared)
    name = f"{N}x{C}x{H}x{W} to {C_out}" + (f" x {layers}" if layers > 1 else "") + (" stride 2" if stride == 2 else "")
    name += "" if dtype == torch.float32 else " bfloat16"
    out = N * C_out * math.ceil(H / stride) * math.ceil(W / stride)
    bytes = input.element_size() * layers * (input.numel() + out + weights[0].numel())
    others = {"oneDNN" if input.is_cpu else "cuDNN": chain(baselines.rep_conv_eager, weights)}
    if input.is_cpu and dtype == torch.bfloat16:
        wide = [prepare_rep_conv(weight.float(), stride=stride) for weight in weights]
        others["rep_conv in float32"] = chain(rep_conv, wide, input.float(), [bias.float() for bias in biases])
    return Case("rep_conv", name, "forward", ours, others, 2.0 * layers * out * C * 9, float(bytes), check)


CASES = {
    "sdc": sdc_cases,
    "dcn": dcn_cases,
    "deform_conv": deform_conv_cases,
    "ms_deform_attn": ms_deform_attn_cases,
    "lcdc": lcdc_cases,
    "rep_conv": rep_conv_cases,
    "softmax_gate": softmax_gate_cases,
}
