"""Measures the speed of the operators beside baselines: ``python -m benchmarks.ops [OPERATOR] [options]``."""

import argparse
import importlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F

from benchmarks import baselines, cuda, targets
from benchmarks.cases import CASES, Case, Function, image  # noqa: F401 (used through `here`)
from benchmarks.timing import alternate, ceilings, header, silent  # noqa: F401 (likewise)
from danet.ops import info, lcdc, library, rep_conv, sdc, softmax_gate


def verify(case: Case) -> None:
    """Compares the result with the reference. Raises ValueError if the error exceeds the tolerance."""
    result, expected, tolerance = case.check()
    difference = result - expected
    error = float(difference.norm() if case.operator == "rep_conv" else difference.abs().max())
    if not error <= tolerance:
        raise ValueError(f"error {error:.2e} is above {tolerance:.0e}")


def summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def measure(case: Case, repetitions: int, alternate: Callable) -> None:
    """Fills ``case.times`` and ``case.errors``. A failure is recorded and does not stop the other cases."""
    with torch.enable_grad() if case.direction != "forward" else torch.no_grad():
        functions = {"ours": case.ours}
        try:
            verify(case)
            for name, function in case.baselines.items():
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
    """Geometric mean of the speed-ups over each baseline, over the cases in which it was measured."""
    values = defaultdict(list)
    for case in cases:
        for name, ratio in ratios(case).items():
            values[name].append(ratio)
    return {name: math.exp(sum(map(math.log, each)) / len(each)) for name, each in sorted(values.items())}


def row(case: Case) -> dict[str, object]:
    """One case as it is written to the JSON file."""
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
    """Microseconds per call on the smallest input: the cost of argument checks and dispatch."""
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
    """Draws a bar chart of the speed-ups over each baseline, one group of bars per case."""
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
    axes.set_xlabel("speed-up over the baseline (logarithmic scale)")
    axes.set_title(title, fontsize=8)
    axes.legend([plt.Rectangle((0, 0), 1, 1, color=f"C{i}") for i in range(len(names))], names, fontsize=7)
    axes.margins(y=0.01, x=0.12)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def use_cuda() -> None:
    """Make CUDA the default device; SystemExit if there is no device, or if there are no kernels."""
    why = "no CUDA device" if not torch.cuda.is_available() else library.WHY_NOT_CUDA
    if why is not None:
        raise SystemExit(f"benchmarks.ops: --device cuda: {why}")
    torch.set_default_device("cuda")
    torch.cuda.set_stream(torch.cuda.Stream())  # CUDA graphs cannot capture the default stream


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops", description=__doc__)
    parser.add_argument(
        "operators",
        nargs="*",
        metavar="OPERATOR",
        help=f"measure only these of {', '.join(CASES)}; on CUDA also hot (the most important cases) and compiled "
        "(beside torch.compile)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to measure on (default: cpu)")
    parser.add_argument("--json", type=Path, help="write the raw results to this file")
    parser.add_argument("--plot", type=Path, help="write a bar chart to this file (.png)")
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="NAME=MODULE",
        help="on CUDA, also measure an installed DCNv3 or DCNv4, for example dcnv4=DCNv4.functions; repeatable",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--repetitions", type=int, default=30, help="measurements per function, at least 30")
    parser.add_argument("--quiet", action="store_true", help="print only errors")
    options = parser.parse_args(arguments)
    # The module that measures on this device; it has header, ceilings, CASES, alternate and dispatch_cost.
    here: ModuleType = cuda if options.device == "cuda" else sys.modules[__name__]
    for name in options.operators:
        if name not in here.CASES:
            names = ", ".join(here.CASES)
            parser.error(f"invalid choice: {name!r} with --device {options.device} (choose from {names})")
    say = silent if options.quiet else print
    for path in (options.json, options.plot):
        if path is not None and not path.parent.is_dir():
            parser.error(f"{path}: no such folder")
    if options.repetitions < 30 or options.threads < 1:
        parser.error("--repetitions must be at least 30, --threads at least 1")
    installed = dict(baseline.partition("=")[::2] for baseline in options.baseline)
    for name, module in installed.items():
        if name not in baselines.INSTALLED:
            parser.error(
                f"--baseline {name}: must be one of {', '.join(baselines.INSTALLED)}, as in dcnv4=DCNv4.functions"
            )
        if options.device != "cuda":
            parser.error("--baseline needs --device cuda")
        try:
            importlib.import_module(module)
        except ImportError as error:
            parser.error(f"--baseline {name}={module}: {error}")
    if info()["operators"] != "compiled":
        raise SystemExit(f"benchmarks.ops: the compiled operators are missing: {info()['why']}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.device == "cuda":
        use_cuda()
        cuda.INSTALLED.update(installed)

    facts, ceiling, costs = here.header(), here.ceilings(), here.dispatch_cost()
    say(", ".join(f"{name} {value}" for name, value in facts.items()))
    say(f"machine: copy bandwidth {ceiling['GB/s']:.1f} GB/s, matrix product {ceiling['GFLOP/s']:.0f} GFLOP/s; medians")
    say(f"{'operator':<13}{'case':<34}{'pass':<9}{'ms':>8}{'GB/s':>8}{'GFLOP/s':>9}{'share':>6}   speed-up over")
    cases: list[Case] = []

    def save() -> None:  # after every case, so that an aborted run keeps its results
        if options.json is None:
            return
        content = {"machine": facts, "ceilings": ceiling, "dispatch_us": costs}
        if options.device == "cuda":
            content["targets"] = targets.to_json(cases, ceiling)
        content.update(geometric_means=geometric_means(cases), cases=[row(case) for case in cases])
        options.json.write_text(json.dumps(content, indent=1) + "\n")

    broken = False
    for name in options.operators or here.CASES:
        try:
            for case in here.CASES[name]():
                measure(case, options.repetitions, here.alternate)
                (print if "ours" in case.errors else say)(line(case, ceiling), flush=True)
                broken |= "ours" in case.errors
                case.forget()
                cases.append(case)
                save()
        except Exception as error:
            print(f"{name}: stopped: {summary(error)}", flush=True)
            broken = True
    say("dispatch in microseconds: " + ", ".join(f"{name} {cost:.1f}" for name, cost in costs.items()))
    say(
        "geometric mean of the speed-ups: "
        + ", ".join(f"{mean:.2f}x {name}" for name, mean in geometric_means(cases).items())
    )
    if options.device == "cuda":
        say(targets.table(cases, ceiling))
    if options.plot is not None:
        where = facts["gpu"] if options.device == "cuda" else f"{facts['cpu']}, {facts['threads']} threads"
        plot(cases, options.plot, f"{where}, torch {facts['torch']}")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
