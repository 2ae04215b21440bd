"""The cases that ``benchmarks.ops`` measures on a CUDA device, and its timing with CUDA events."""

import itertools
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import baselines
from benchmarks.cases import (
    Case,
    Function,
    backward_of,
    deform_conv_cases,
    image,
    ms_deform_attn_cases,
    rep_conv_case,
    same,
)
from benchmarks.timing import origin
from danet.ops import lcdc, lcdc_reference, library, sdc, sdc_reference, softmax_gate, softmax_gate_reference

FLUSH_BYTES = 256 << 20
"""Bytes read before every timed call to evict the L2 cache. Reading is used because evicting dirty lines, left by a
write, would be charged to the timed call."""

GRAPH_BELOW_S = 100e-6
"""Functions faster than this many seconds are captured as a CUDA graph of CALLS_PER_GRAPH calls whose replay is timed.
The launch cost is then that of a captured network, and the data is in the cache, as between the layers of a network.
Everything runs on one stream that is not the default stream: a backward pass can be captured only on the stream of its
forward pass."""
CALLS_PER_GRAPH = 20

INSTALLED: dict[str, str] = {}
"""Baselines given by ``--baseline NAME=MODULE``: modules by name."""


def alternate(
    functions: dict[str, Callable[[], object]], *, repetitions: int = 30, seconds: float = 0.3
) -> dict[str, float]:
    """Like ``benchmarks.timing.alternate`` with CUDA events: median seconds per call of each function."""
    flush = torch.zeros(FLUSH_BYTES // 4, dtype=torch.float32, device="cuda")
    runs, calls = {}, {}
    for name, function in functions.items():
        for _ in range(3):
            function()
        torch.cuda.synchronize()
        runs[name], calls[name] = function, 1
        if _seconds(function, flush) < GRAPH_BELOW_S and (graph := _captured(function)) is not None:
            runs[name], calls[name] = graph.replay, CALLS_PER_GRAPH
            graph.replay()
    times: dict[str, list[float]] = {name: [] for name in functions}
    started = time.perf_counter()
    while len(next(iter(times.values()))) < repetitions or time.perf_counter() - started < seconds:
        for name, run in runs.items():
            times[name].append(_seconds(run, flush) / calls[name])
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(function: Callable[[], object], flush: Tensor) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.sum()
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def _captured(function: Callable[[], object]) -> torch.cuda.CUDAGraph | None:
    """A CUDA graph of CALLS_PER_GRAPH calls, or None if the function cannot be captured (for example if it
    synchronizes)."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(CALLS_PER_GRAPH):
                function()
    except RuntimeError:
        torch.cuda.set_stream(stream)
        torch.cuda.synchronize()
        return None
    return graph


def ceilings() -> dict[str, float]:
    """GB/s of a large copy (bytes read and written), GFLOP/s of a large bfloat16 matrix product."""
    source = torch.ones(1 << 28, device="cuda")
    target = torch.empty_like(source)
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    times = alternate({"copy": lambda: target.copy_(source), "product": lambda: a @ a}, repetitions=20, seconds=0.5)
    return {"GB/s": 2 * source.nbytes / times["copy"] / 1e9, "GFLOP/s": 2 * 8192**3 / times["product"] / 1e9}


def header() -> dict[str, str]:
    """Description of the device and of the software versions."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": str(properties.multi_processor_count),
        "driver": _driver(),
        "cuda": torch.version.cuda or "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernels": library.cuda_fact("version"),
        **origin(),
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0] or "unknown"
    except OSError:
        return "unknown"


LARGE = (8, 64, 128, 160)
SDC_SIZES = (LARGE, (8, 128, 64, 80), (8, 256, 32, 40), (1, 64, 64, 80))
G, K = 4, 9  # groups and taps of SDC


def hot_cases() -> Iterator[Case]:
    """What a first run on a new device must measure: it takes less than a minute."""
    for dtype in (torch.bfloat16, torch.float32):
        for direction in ("forward", "backward"):
            yield sdc_case(LARGE, dtype, direction)
    for layers in (1, 16):
        yield rep_conv_case((1, 256, 16, 20), 256, layers=layers, dtype=torch.bfloat16)


def sdc_case(sizes: tuple[int, int, int, int], dtype: torch.dtype, direction: str, *, compiled: bool = False) -> Case:
    """One pass of SDC beside its reference; with ``compiled`` also beside torch.compile, which takes half a minute."""
    N, C, H, W = sizes
    predicted = image(N, 3 * G * K, H, W, dtype=dtype)
    leaves = [image(N, C, H, W, dtype=dtype), predicted[:, : 2 * G * K], predicted[:, 2 * G * K :]]

    def ours(*t: Tensor) -> Tensor:
        return sdc(*t, groups=G)

    def reference(*t: Tensor) -> Tensor:
        return sdc_reference(*t, groups=G)

    wrap = (lambda f, t: lambda: f(*t)) if direction == "forward" else backward_of
    factor, tolerance = (1, 1) if direction == "forward" else (2, 50)
    tolerance *= 1e-3 if dtype == torch.float32 else 0.1
    functions = {"sdc_reference": reference}
    if compiled:
        functions["torch.compile"] = torch.compile(reference, dynamic=False)
    elif (torchvision := baselines.torchvision_deform_conv(dtype, G)) is not None:
        functions["torchvision"] = torchvision
    others = {name: wrap(f, leaves) for name, f in functions.items()}
    call = wrap(ours, leaves)
    check = same(call, others["sdc_reference"], tolerance)
    flops, bytes = 8.0 * N * C * H * W * K, float(dtype.itemsize * N * H * W * (2 * C + 3 * G * K))
    name = f"{N}x{C}x{H}x{W} G{G} {str(dtype)[6:]}"
    return Case("sdc", name, direction, call, others, factor * flops, factor * bytes, check)


def sdc_cases() -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float32):
        for sizes in SDC_SIZES:
            if sizes != LARGE:  # among hot_cases
                for direction in ("forward", "backward"):
                    yield sdc_case(sizes, dtype, direction)

    yield from sdc_pointwise_cases()
    yield from dcn_cases()


def compiled_cases() -> Iterator[Case]:
    """torch.compile beside SDC."""
    for dtype in (torch.bfloat16, torch.float32):
        yield sdc_case(LARGE, dtype, "forward", compiled=True)


def sdc_pointwise_cases() -> Iterator[Case]:
    """SDC followed by a 1x1 convolution beside the dense deformable convolution that they replace."""
    for dtype, tolerance in ((torch.float16, 0.1), (torch.float32, 1e-2)):
        N, C, H, W, G, K = 8, 64, 128, 160, 4, 9
        predicted = image(N, 3 * G * K, H, W, dtype=dtype)
        leaves = [image(N, C, H, W, dtype=dtype), predicted[:, : 2 * G * K], predicted[:, 2 * G * K :]]
        pointwise, dense = image(C, C, 1, 1, dtype=dtype, scale=0.1), image(C, C, 3, 3, dtype=dtype, scale=0.1)

        def ours(*t: Tensor, weight: Tensor = pointwise) -> Tensor:
            return F.conv2d(sdc(*t, groups=4), weight)

        def reference(*t: Tensor, weight: Tensor = pointwise) -> Tensor:
            return F.conv2d(sdc_reference(*t, groups=4), weight)

        others: dict[str, Function | None] = {}
        if (torchvision := baselines.torchvision_dense(dense, G)) is not None:
            others["torchvision dense (another function)"] = lambda f=torchvision, t=leaves: f(*t)
        call = lambda f=ours, t=leaves: f(*t)  # noqa: E731
        check = same(call, lambda f=reference, t=leaves: f(*t), tolerance)
        flops, bytes = N * C * H * W * (8.0 * K + 2 * C), float(dtype.itemsize * N * H * W * (4 * C + 3 * G * K))
        size = f"{N}x{C}x{H}x{W} G4 and 1x1 {str(dtype)[6:]}"
        yield Case("sdc", size, "forward", call, others, flops, bytes, check)


def dcn_cases() -> Iterator[Case]:
    """The setting of DCNv4's own benchmark: its shapes, float16, no softmax, offset_scale 2, offsets up to 10
    pixels."""
    for H, G in ((56, 4), (28, 8), (14, 16), (7, 32)):
        N, C, K, dtype = 64, 32 * G, 9, torch.float16
        offset, mask = (torch.rand(N, 2 * G * K, H, H) * 2 - 1) * 10, torch.rand(N, G * K, H, H)
        offset, mask = (t.to(dtype, memory_format=torch.channels_last) for t in (offset, mask))
        leaves = [image(N, C, H, H, dtype=dtype), offset, mask]

        def ours(*t: Tensor, groups: int = G) -> Tensor:
            return sdc(*t, groups=groups, softmax=False, offset_scale=2.0)

        def reference(*t: Tensor, groups: int = G) -> Tensor:
            return sdc_reference(*t, groups=groups, softmax=False, offset_scale=2.0)

        installed = {name: baselines.INSTALLED[name](module, leaves, G, 2.0) for name, module in INSTALLED.items()}
        elements = N * H * H * (2 * C + 3 * G * K)
        for direction, wrap in (("forward", lambda f, t: lambda: f(*t)), ("backward", backward_of)):
            factor = 1 if direction == "forward" else 2
            others = {name: wrap(f, tensors) for name, (f, tensors) in installed.items()}
            others["sdc_reference"] = wrap(reference, leaves)
            call = wrap(ours, leaves)
            check = same(call, others["sdc_reference"], 0.1 if direction == "forward" else 5)
            flops, bytes = factor * 8.0 * N * C * H * H * K, float(factor * dtype.itemsize * elements)
            yield Case("sdc", f"{N}x{C}x{H}x{H} G{G} as DCNv4", direction, call, others, flops, bytes, check)


def lcdc_cases() -> Iterator[Case]:
    for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float32, 1e-3)):
        N, C, H, W, k = 32, 64, 128, 160, 3
        leaves = [image(N, C, H, W, dtype=dtype), torch.randn(1, k).to(dtype)]
        for direction, wrap in (("forward", lambda f, t: lambda: f(*t)), ("backward", backward_of)):
            call = wrap(lambda *t: lcdc(*t, gate=True), leaves)
            exact = wrap(lambda *t: lcdc_reference(*t, gate=True), leaves)
            check = same(call, exact, tolerance) if direction == "forward" else same_gradients(call, exact, tolerance)
            moved = (2 if direction == "forward" else 3) * leaves[0].nbytes
            size, flops = f"{N}x{C}x{H}x{W} k{k} gate {str(dtype)[6:]}", 2.0 * leaves[0].numel() * (k + 4)
            yield Case(
                "lcdc", size, direction, call, {"shifted": wrap(baselines.lcdc_shifted, leaves)}, flops, moved, check
            )


def same_gradients(ours: Function, reference: Function, tolerance: float) -> Callable[[], tuple[Tensor, Tensor, float]]:
    """Like ``same``, but compares the weight gradient, a sum of millions of products, relative to its norm."""

    def check() -> tuple[Tensor, Tensor, float]:
        pair = ours(), reference()
        scale = pair[1][1].double().norm()
        return *(torch.cat([t[0].double().flatten(), t[1].double().flatten() / scale]) for t in pair), tolerance

    return check


def softmax_gate_cases() -> Iterator[Case]:
    for dtype, tolerance in ((torch.bfloat16, 0.3), (torch.float32, 1e-3)):
        leaves = [image(32, 64, 128, 160, dtype=dtype), image(32, 64, 128, 160, dtype=dtype)]
        for direction, wrap in (("forward", lambda f, t: lambda: f(*t)), ("backward", backward_of)):
            call = wrap(softmax_gate, leaves)
            check = same(call, wrap(softmax_gate_reference, leaves), tolerance)
            moved = (3 if direction == "forward" else 5) * leaves[0].nbytes
            others = {"eager": wrap(baselines.softmax_gate_eager, leaves)}
            size, flops = f"32x64x128x160 {str(dtype)[6:]}", 5.0 * leaves[0].numel()
            yield Case("softmax_gate", size, direction, call, others, flops, moved, check)


def rep_conv_cases() -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    for N in (1, 8, 32):
        for C, H, W in ((64, 64, 80), (128, 32, 40), (256, 16, 20)):
            yield rep_conv_case((N, C, H, W), C, layers=1, dtype=torch.bfloat16)
    yield rep_conv_case((1, 64, 64, 80), 128, layers=1, stride=2, dtype=torch.bfloat16)
    yield rep_conv_case((1, 256, 16, 20), 256, layers=1, dtype=torch.float32)


def half_and_single(cases: Callable[[int, torch.dtype], Iterator[Case]]) -> Callable[[], Iterator[Case]]:
    """The cases of the CPU with eight images each, in a half dtype and in float32. torchvision has no bfloat16."""
    return lambda: itertools.chain.from_iterable(cases(8, dtype) for dtype in (torch.float16, torch.float32))


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "hot": hot_cases,
    "sdc": sdc_cases,
    "deform_conv": half_and_single(deform_conv_cases),
    "ms_deform_attn": half_and_single(ms_deform_attn_cases),
    "rep_conv": rep_conv_cases,
    "lcdc": lcdc_cases,
    "softmax_gate": softmax_gate_cases,
    "compiled": compiled_cases,  # last: compilation takes longest
}


def dispatch_cost() -> dict[str, float]:
    """Microseconds of host time per launch on a tiny input: the cost of a call without CUDA graphs."""
    with torch.no_grad():
        leaves = [image(1, 8, 1, 1), image(1, 18, 1, 1), image(1, 9, 1, 1)]
        weight = image(8, 8, 3, 3)
        functions: dict[str, Function] = {
            "sdc": lambda: sdc(*leaves),
            "lcdc": lambda: lcdc(leaves[0], torch.empty(1, 3, device="cuda")),
            "F.conv2d": lambda: F.conv2d(leaves[0], weight, padding=1),
        }
        costs = {}
        for name, function in functions.items():
            for _ in range(10):
                function()
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(200):
                function()
            costs[name] = (time.perf_counter() - started) / 200 * 1e6
            torch.cuda.synchronize()
    return costs
