"""Measures the operators against the forms that others would write: python -m benchmarks.ops [OPERATOR] [options]."""

import argparse
import functools
import importlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import goals, rivals
from benchmarks.timing import alternate, ceilings, header  # noqa: F401 (`measurements` gives them)
from danet.ops import (
    dcnv3,
    dcnv4,
    info,
    lcdc,
    lcdc_reference,
    library,
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
    """One line of the table: what is measured, what it costs at least, and what it must agree with."""

    operator: str
    name: str
    direction: str
    ours: Function
    rivals: dict[str, Function | None]
    flops: float
    bytes: float
    check: Callable[[], tuple[Tensor, Tensor, float]]  # our result, what it must be, largest error allowed
    times: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)  # of "ours", which is then not measured, and of rivals

    def forget(self) -> None:
        """Lets go of the tensors."""
        del self.ours, self.rivals, self.check


def image(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Random, channels-last, on the default device."""
    return (torch.randn(shape) * scale).to(dtype=dtype, memory_format=torch.channels_last)


def backward_of(function: Callable[..., Tensor], leaves: list[Tensor]) -> Function:
    """The backward pass alone: the graph is built at the first call and kept."""

    @functools.cache
    def graph() -> tuple[Tensor, list[Tensor], Tensor]:
        own = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in leaves]
        with torch.enable_grad():
            out = function(*own)
        grad_output = torch.randn(out.shape, device="cpu", generator=torch.Generator().manual_seed(7))
        return out, own, torch.empty_like(out).copy_(grad_output)  # laid out as each function's own result

    def run() -> tuple[Tensor, ...]:
        out, own, grad_output = graph()
        return torch.autograd.grad(out, own, grad_output, retain_graph=True)

    return run


def both_of(function: Callable[..., Tensor], leaves: list[Tensor]) -> Function:
    """Forward and backward."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in leaves]
    grad_output = torch.ones(function(*leaves).shape).contiguous(memory_format=torch.channels_last)
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad_output)


def same(ours: Function, reference: Function, tolerance: float) -> Callable[[], tuple[Tensor, Tensor, float]]:
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
        predicted = image(N, 3 * G * K, H, W)  # offsets and logits of one convolution, as the SDC module has them
        leaves = [image(N, C, H, W), predicted[:, : 2 * G * K], predicted[:, 2 * G * K :]]
        flops, bytes = 8.0 * N * C * H * W * K, 4.0 * N * H * W * (2 * C + 3 * G * K)

        def ours(*t: Tensor) -> Tensor:
            return sdc(*t, groups=4)

        def reference(*t: Tensor) -> Tensor:
            return sdc_reference(*t, groups=4)

        def grid_sample(*t: Tensor) -> Tensor:
            return rivals.sdc_grid_sample(*t, groups=4)

        functions = {"sdc_reference": reference, "grid_sample": grid_sample}
        size = f"{N}x{C}x{H}x{W} G4"
        if N > 1:
            both = {name: both_of(f, leaves) for name, f in functions.items()}
            call = both_of(ours, leaves)
            yield Case("sdc", size, "both", call, both, 3 * flops, 3 * bytes, same(call, both["sdc_reference"], 1e-3))
            continue
        forward = {name: lambda f=f, t=leaves: f(*t) for name, f in functions.items()}
        forward["onnxruntime"] = rivals.onnxruntime_deform_conv(*leaves, groups=4)
        call = lambda f=ours, t=leaves: f(*t)  # noqa: E731
        yield Case("sdc", size, "forward", call, forward, flops, bytes, same(call, forward["sdc_reference"], 1e-4))
        backward = {name: backward_of(f, leaves) for name, f in functions.items()}
        call = backward_of(ours, leaves)
        check = same(call, backward["sdc_reference"], 1e-3)
        yield Case("sdc", size, "backward", call, backward, 2 * flops, 2 * bytes, check)


def dcn_cases() -> Iterator[Case]:
    """What another order of taps, pairs and groups costs: the same sums by `sdc`."""
    G, K = 4, 9
    for C, H, W in ((64, 64, 80), (128, 32, 40)):
        input, offset, mask = torch.randn(1, H, W, C), torch.randn(1, H, W, 2 * G * K), torch.randn(1, H, W, G * K)
        groups = torch.cat([offset.unflatten(3, (G, 2 * K)), mask.unflatten(3, (G, K))], 4).flatten(3)
        windows = (3, 3, 1, 1, 1, 1, 1, 1, G, C // G, 1.0)

        def turned(*t: Tensor) -> Tensor:
            """Where x and y change places, DCNv3's order is sdc's."""
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
                # Of the result alone: the gradients of DCNv4 lie in another order than sdc's, and have tests.
                images_of = (input, offset, mask)
                check = same(lambda f=ours, t=leaves: f(*t), lambda f=turned, t=images_of: f(*t), 1e-4)
                call, factor = wrap(ours, leaves), 1 if direction == "forward" else 2
                others = {"sdc": wrap(plain, images)}
                yield Case("dcn", size, direction, call, others, factor * flops, factor * bytes, check)


def lcdc_cases() -> Iterator[Case]:
    for C, H, W, k in ((64, 64, 80, 3), (128, 32, 40, 3), (256, 16, 20, 5)):
        leaves = [image(1, C, H, W), torch.randn(1, k)]

        def ours(*t: Tensor) -> Tensor:
            return lcdc(*t, gate=True)

        functions = {"shifted": rivals.lcdc_shifted, "conv1d": rivals.lcdc_conv1d}
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
        functions = {"eager": rivals.softmax_gate_eager, "softmax_gate_reference": softmax_gate_reference}
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
    yield rep_conv_case((1, 64, 64, 80), 64, layers=1, dtype=torch.bfloat16)
    yield rep_conv_case((1, 128, 32, 40), 128, layers=1, dtype=torch.bfloat16)


def rep_conv_case(
    size: tuple[int, ...], C_out: int, *, layers: int, stride: int = 1, dtype: torch.dtype = torch.float32
) -> Case:
    """One layer, or a chain of them, each with weights of its own."""
    N, C, H, W = size
    input = image(*size, dtype=dtype)
    weights = [image(C_out, C, 3, 3, dtype=dtype, scale=(2 / (9 * C)) ** 0.5) for _ in range(layers)]
    biases = [torch.randn(C_out).to(dtype) * 0.1 for _ in range(layers)]
    prepared = [prepare_rep_conv(weight, stride=stride) for weight in weights]

    def chain(function: Callable, kernels: list) -> Function:
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
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-3 if input.is_cuda else 1e-5  # tf32 there
        return result / norm, exact / norm, tolerance

    ours = chain(rep_conv, prepared)
    name = f"{N}x{C}x{H}x{W} to {C_out}" + (f" x {layers}" if layers > 1 else "") + (" stride 2" if stride == 2 else "")
    name += "" if dtype == torch.float32 else " bfloat16"
    out = N * C_out * math.ceil(H / stride) * math.ceil(W / stride)
    bytes = input.element_size() * layers * (input.numel() + out + weights[0].numel())
    others = {"oneDNN" if input.is_cpu else "cuDNN": chain(rivals.rep_conv_eager, weights)}
    return Case("rep_conv", name, "forward", ours, others, 2.0 * layers * out * C * 9, float(bytes), check)


CASES = {
    "sdc": sdc_cases,
    "dcn": dcn_cases,
    "lcdc": lcdc_cases,
    "rep_conv": rep_conv_cases,
    "softmax_gate": softmax_gate_cases,
}


def verify(case: Case) -> None:
    """A fast wrong answer is no answer: ValueError."""
    result, expected, tolerance = case.check()
    difference = result - expected
    error = float(difference.norm() if case.operator == "rep_conv" else difference.abs().max())
    if not error <= tolerance:
        raise ValueError(f"error {error:.2e} is above {tolerance:.0e}")


def summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def measure(case: Case, repetitions: int, alternate: Callable) -> None:
    """Fills `times` and `errors`: what goes wrong in one case is none of the others' business."""
    with torch.enable_grad() if case.direction != "forward" else torch.no_grad():
        functions = {"ours": case.ours}
        try:
            verify(case)
            for name, function in case.rivals.items():
                if function is None:
                    continue
                try:
                    function()
                    functions[name] = function
                except Exception as error:
                    case.errors[name] = summary(error)
            case.times = alternate(functions, repetitions=repetitions)
        except Exception as error:
            case.errors["ours"] = summary(error)


def ratios(case: Case) -> dict[str, float]:
    return {name: time / case.times["ours"] for name, time in case.times.items() if name != "ours"}


def line(case: Case, ceiling: dict[str, float]) -> str:
    text = f"{case.operator:<13}{case.name:<34}{case.direction:<9}"
    if "ours" in case.errors:
        return f"{text}  FAILED: {case.errors['ours']}"
    time = case.times["ours"]
    bandwidth, speed = case.bytes / time / 1e9, case.flops / time / 1e9
    share = max(bandwidth / ceiling["GB/s"], speed / ceiling["GFLOP/s"])
    text += f"{time * 1e3:8.3f}{bandwidth:8.1f}{speed:9.1f}{share:6.0%}"
    text += "".join(f"   {ratio:5.2f}x {name}" for name, ratio in ratios(case).items())
    return text + "".join(f"   no {name} ({error})" for name, error in case.errors.items())


def geometric_means(cases: list[Case]) -> dict[str, float]:
    """How many times as fast as each rival, over the cases that have it."""
    values = defaultdict(list)
    for case in cases:
        for name, ratio in ratios(case).items():
            values[name].append(ratio)
    return {name: math.exp(sum(map(math.log, each)) / len(each)) for name, each in sorted(values.items())}


def row(case: Case) -> dict[str, object]:
    """What the file of raw figures has of a case."""
    return {
        "operator": case.operator,
        "case": case.name,
        "pass": case.direction,
        "flops": case.flops,
        "bytes": case.bytes,
        "seconds": case.times,
        "times_as_fast_as": ratios(case),
        **({"errors": case.errors} if case.errors else {}),
    }


def dispatch_cost() -> dict[str, float]:
    """Microseconds of a call on the smallest input: what is not the kernel's work."""
    leaves = {
        "sdc": (sdc, [image(1, 1, 1, 1), image(1, 18, 1, 1), image(1, 9, 1, 1)]),
        "lcdc": (lcdc, [image(1, 1, 1, 1), torch.ones(1, 3)]),
        "softmax_gate": (softmax_gate, [image(1, 1, 1, 1), image(1, 1, 1, 1)]),
        "rep_conv": (rep_conv, [image(1, 8, 1, 1), image(8, 8, 3, 3)]),
    }
    functions = {name: lambda f=f, t=t: f(*t) for name, (f, t) in leaves.items()}
    functions["F.conv2d"] = lambda t=leaves["rep_conv"][1]: F.conv2d(*t, padding=1)
    with torch.no_grad():
        times = alternate(functions)
    return {name: time * 1e6 for name, time in times.items()}


def plot(cases: list[Case], path: Path, title: str) -> None:
    """Bars of how many times faster than each rival, a group a case."""
    cases = [case for case in cases if case.times]
    try:
        import matplotlib.ticker
    except ImportError:
        print(f"no {path}: matplotlib is not installed")
        return

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [(f"{c.operator} {c.name}, {c.direction}", ratios(c)) for c in cases]
    names = list(dict.fromkeys(name for _, each in rows for name in each))
    count = sum(len(each) for _, each in rows)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.2 * count + 0.12 * len(rows)))
    y, ticks = 0.0, []
    for text, each in reversed(rows):
        ticks.append((y + (len(each) - 1) / 2, text))
        for name, ratio in each.items():
            axes.barh(y, ratio, color=f"C{names.index(name)}")
            axes.annotate(f" {ratio:.1f}", (ratio, y), va="center", fontsize=7)
            y += 1
        y += 0.6
    axes.set_yticks([t for t, _ in ticks], [text for _, text in ticks], fontsize=7)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast as the rival (logarithmic)")
    axes.set_title(title, fontsize=8)
    axes.legend([plt.Rectangle((0, 0), 1, 1, color=f"C{i}") for i in range(len(names))], names, fontsize=7)
    axes.margins(y=0.01, x=0.12)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def measurements(device: str) -> ModuleType:
    """What measures on a device: header, ceilings, CASES, alternate and dispatch_cost."""
    if device == "cpu":
        return sys.modules[__name__]
    why = "no CUDA device" if not torch.cuda.is_available() else library.WHY_NOT_CUDA
    if why is not None:
        raise SystemExit(f"benchmarks.ops: --device cuda: {why}")
    torch.set_default_device("cuda")
    torch.cuda.set_stream(torch.cuda.Stream())  # the default one cannot be captured, nor what autograd recorded on it
    from benchmarks import cuda  # which imports this module

    return cuda


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops", description=__doc__)
    parser.add_argument("operator", nargs="?", choices=CASES, help="by default all of them")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure, cpu by default")
    parser.add_argument("--json", type=Path, help="write the raw figures to this file")
    parser.add_argument("--plot", type=Path, help="draw a chart to this file (.png)")
    parser.add_argument(
        "--rival",
        action="append",
        default=[],
        metavar="NAME=MODULE",
        help="on cuda, also measure an installed dcnv3 or dcnv4, as in dcnv4=DCNv4.functions; repeatable",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads, 2 by default")
    parser.add_argument("--repetitions", type=int, default=30, help="measurements a function, at least 30")
    options = parser.parse_args(arguments)
    for path in (options.json, options.plot):
        if path is not None and not path.parent.is_dir():
            parser.error(f"{path}: no such folder")
    if options.repetitions < 30 or options.threads < 1:
        parser.error("--repetitions must be at least 30, --threads at least 1")
    installed = dict(rival.partition("=")[::2] for rival in options.rival)
    for name, module in installed.items():
        if name not in rivals.INSTALLED:
            parser.error(f"--rival {name}: must be one of {', '.join(rivals.INSTALLED)}, as in dcnv4=DCNv4.functions")
        if options.device != "cuda":
            parser.error("--rival: these need --device cuda")
        try:
            importlib.import_module(module)
        except ImportError as error:
            parser.error(f"--rival {name}={module}: {error}")
    if info()["operators"] != "compiled":
        raise SystemExit(f"benchmarks.ops: nothing to measure, {info()['why']}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    here = measurements(options.device)
    if options.operator and options.operator not in here.CASES:
        parser.error(f"{options.operator} is not measured with --device {options.device}")
    if options.device == "cuda":
        here.INSTALLED.update(installed)

    facts, ceiling, costs = here.header(), here.ceilings(), here.dispatch_cost()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"ceilings: copy {ceiling['GB/s']:.1f} GB/s, large product {ceiling['GFLOP/s']:.0f} GFLOP/s; medians")
    print(f"{'operator':<13}{'case':<34}{'pass':<9}{'ms':>8}{'GB/s':>8}{'GFLOP/s':>9}{'share':>6}   times as fast as")
    cases: list[Case] = []

    def save() -> None:  # after every case: what stops the next one loses nothing
        if options.json is None:
            return
        content = {"machine": facts, "ceilings": ceiling, "dispatch_us": costs}
        if options.device == "cuda":
            content["goals"] = goals.figures(cases, ceiling)
        content.update(geometric_means=geometric_means(cases), cases=[row(case) for case in cases])
        options.json.write_text(json.dumps(content, indent=1) + "\n")

    broken = False
    for name in [options.operator] if options.operator else here.CASES:
        try:
            for case in here.CASES[name]():
                measure(case, options.repetitions, here.alternate)
                print(line(case, ceiling), flush=True)
                broken |= "ours" in case.errors
                case.forget()
                cases.append(case)
                save()
        except Exception as error:
            print(f"{name}: no further cases: {summary(error)}", flush=True)
            broken = True
    print("dispatch, microseconds: " + ", ".join(f"{name} {cost:.1f}" for name, cost in costs.items()))
    print("geometric means: " + ", ".join(f"{mean:.2f}x {name}" for name, mean in geometric_means(cases).items()))
    if options.device == "cuda":
        print(goals.table(cases, ceiling))
    if options.plot is not None:
        where = facts["gpu"] if options.device == "cuda" else f"{facts['cpu']}, {facts['threads']} threads"
        plot(cases, options.plot, f"{where}, torch {facts['torch']}")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
