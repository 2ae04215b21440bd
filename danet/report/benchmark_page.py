"""The report of a JSON file that ``python -m benchmarks.ops`` or ``python -m benchmarks.detector`` wrote.

The keys read here are those that benchmarks/ops.py and benchmarks/detector.py write: a change there needs one here.
"""

from pathlib import Path

from danet.evaluation.formatting import number
from danet.evaluation.plots import HEIGHT, Line, line_figure
from danet.report.page import Bars, Block, Chart, Code, Facts, Fold, Grid, Page, Paragraph, Section, Table

OPERATORS = ("sdc", "lcdc", "rep_conv", "softmax_gate")
BASELINES = {"torch.compile": "compile", "onnxruntime": "onnxruntime"}
"""Names in the results of the detector's baselines, and their values of the option --rivals."""
LISTED_LAYERS = 12
"""Slowest layers of a network, shown as bars; tables have all layers."""


def benchmark_report(path: Path, content: dict) -> Page:
    """The report of a benchmark of operators or of whole networks."""
    build = _operators if "operator" in content["cases"][0] else _detector
    tiles, sections, command = build(path, content)
    machine, ceilings = content["machine"], content["ceilings"]
    where = machine.get("gpu") or machine["cpu"]
    lead = f"{where}, {machine['threads']} threads, torch {machine['torch']}"
    lead += f", {machine['date']}, commit {machine['commit']}." if "date" in machine else "."
    facts = [(name.replace("_", " "), value) for name, value in machine.items()]
    facts.append(("large copy", f"{ceilings['GB/s']:.1f} GB/s, read and written"))
    facts.append(("large float32 product", f"{ceilings['GFLOP/s']:.1f} GFLOP/s"))
    repeat = Code(command, "Command that repeats the benchmark")
    sections += [
        Section("Machine", [Facts(facts)]),
        Section("Reproduce", [Paragraph("In a checkout of danet, on the same machine:"), repeat]),
    ]
    return Page("Benchmark", path.stem, lead, tiles, sections)


def _operators(path: Path, content: dict) -> tuple[list, list[Section], str]:
    cases = [case for case in content["cases"] if case["seconds"].get("ours")]
    failed = [case for case in content["cases"] if case not in cases]
    present = dict.fromkeys(case["operator"] for case in content["cases"])
    names = list(dict.fromkeys([*(name for name in OPERATORS if name in present), *present]))
    by_name = {name: [case for case in cases if case["operator"] == name] for name in names}
    ceilings, machine = content["ceilings"], content["machine"]
    means = sorted(content["geometric_means"].items(), key=lambda item: -item[1])
    rows = [(name, mean, f"{mean:.1f} ×") for name, mean in means]
    note = "Geometric means over the cases that have the baseline."
    speedups: list[Block] = [Bars("Speed-up over each baseline", rows, note)]
    speedups += [_cases_table(name, each, ceilings) for name, each in by_name.items()]
    if failed:
        reasons = [(f"{case['operator']} {case['case']}", case.get("errors", {}).get("ours", "")) for case in failed]
        speedups.append(Table("Not measured", ("case", "reason"), reasons, text_columns=(1,)))
    call = [(name, cost, f"{cost:.1f} µs") for name, cost in content["dispatch_us"].items()]
    sections = [
        Section("Roofline", [_roofline(by_name, ceilings)]),
        Section("Speed-ups", speedups),
        Section("Goals", _goals(content.get("goals", []))),
        Section("Cost of a call", [Bars("Microseconds per call on the smallest input", call)]),
    ]
    command = ["python -m benchmarks.ops"]
    command += [names[0]] if len(names) == 1 else []
    command += ["--device cuda"] if "gpu" in machine else []
    command += [f"--threads {machine['threads']}"] if machine["threads"] != 2 else []
    tiles = [(name, _range(each), "times as fast as the baselines") for name, each in by_name.items()]
    return tiles, sections, " ".join([*command, f"--json {path.name}"])


def _roofline(cases: dict[str, list[dict]], ceilings: dict[str, float]) -> Chart:
    """Speed over arithmetic intensity, below what memory bandwidth and arithmetic allow."""
    bandwidth, peak = ceilings["GB/s"], ceilings["GFLOP/s"]
    knee = peak / bandwidth
    lines = []
    for color, (name, each) in enumerate(cases.items()):
        for forward in (True, False):
            shown = [case for case in each if (case["pass"] == "forward") == forward]
            x = [case["flops"] / case["bytes"] for case in shown]
            y = [case["flops"] / case["seconds"]["ours"] / 1e9 for case in shown]
            tips = [
                f"{name} {case['case']}, {case['pass']}: {speed:.0f} GFLOP/s at {intensity:.1f} FLOP per byte"
                for case, intensity, speed in zip(shown, x, y, strict=True)
            ]
            if shown:
                label = f"{name}, {'forward' if forward else 'backward'}"
                lines.append(Line(label, x, y, color, dots=True, hollow=not forward, tips=tips))
    intensities = [knee, *(x for line in lines for x in line.x)]
    corners = [min(intensities) / 1.5, knee, max(intensities) * 1.5]
    ceiling = Line("ceiling", corners, [min(bandwidth * x, peak) for x in corners], color=-1)
    x_label = "arithmetic intensity, FLOP per byte"
    figure = line_figure([ceiling, *lines], x_label, "GFLOP/s", log="xy", height=1.3 * HEIGHT)
    note = (
        f"Ceiling: a large copy, {bandwidth:.1f} GB/s, and a large float32 product, {peak:.0f} GFLOP/s, measured in "
        "the same run. Points can lie above it: bytes are counted as if each tensor went through memory once, but "
        "caches are faster; and FLOP of rep_conv are those of a direct convolution, while Winograd's algorithm needs "
        "fewer."
    )
    return Chart.of("Speed over arithmetic intensity", figure, note)


def _range(cases: list[dict]) -> str:
    """The lowest and the highest speed-up of an operator."""
    ratios = [ratio for case in cases for ratio in case["times_as_fast_as"].values()]
    return f"{min(ratios):.1f}–{max(ratios):.1f} ×" if ratios else "-"


def _cases_table(name: str, cases: list[dict], ceilings: dict[str, float]) -> Table:
    baselines = list(dict.fromkeys(baseline for case in cases for baseline in case["times_as_fast_as"]))
    rows = []
    for case in cases:
        time = case["seconds"]["ours"]
        memory, arithmetic = case["bytes"] / time / 1e9, case["flops"] / time / 1e9
        share = max(memory / ceilings["GB/s"], arithmetic / ceilings["GFLOP/s"])
        measured = (f"{1e3 * time:.3f}", f"{arithmetic:.0f}", f"{memory:.1f}", f"{share:.0%}")
        rows.append((f"{case['case']}, {case['pass']}", *measured, *_speedups(case, baselines)))
    head = ("case", "ms", "GFLOP/s", "GB/s", "of the ceiling", *(f"vs {baseline}" for baseline in baselines))
    return Table(f"{name}: time, and speed-up over the baselines", head, rows)


def _speedups(case: dict, baselines: list[str]) -> list[str]:
    ratios = (case["times_as_fast_as"].get(baseline) for baseline in baselines)
    return ["" if ratio is None else f"{ratio:.2f} ×" for ratio in ratios]


def _goals(goals: list[dict]) -> list[Block]:
    rows = []
    for goal in goals:
        values = (_optional(goal[key]) for key in ("must", "aim", "measured"))
        rows.append((f"{goal['case']}, {goal['pass']}", goal["figure"], *values))
    return [Table("Goals", ("case", "metric", "must", "aim", "measured"), rows, text_columns=(1,))] if rows else []


def _detector(path: Path, content: dict) -> tuple[list, list[Section], str]:
    cases, machine = content["cases"], content["machine"]
    tiles = [(case["case"], f"{case['frames_per_second']:.1f}", "frames/s, network only") for case in cases]
    times: list[Block] = []
    for case in cases:
        medians = {name: each["p50"] for name, each in case["milliseconds"].items()}
        bars = [(name, median, f"{median:.1f} ms") for name, median in medians.items()]
        times.append(Bars(f"{case['case']}, {case['GFLOP']:.2f} GFLOP", bars))
    layers = [case for case in cases if case.get("layers")]
    sections = [
        Section("Milliseconds per call", [Paragraph("Medians; shorter is better."), Grid(times)]),
        Section("Speed-ups", [_networks_table(cases)]),
        Section("Layers", _layers(layers, content["ceilings"]["GFLOP/s"])),
    ]
    names, sizes, batches = (
        list(dict.fromkeys(each)) for each in zip(*(_parts(case["case"]) for case in cases), strict=True)
    )
    which = f"--weights {names[0]}" if names[0].endswith(".safetensors") else f"--models {' '.join(names)}"
    given = [word for name, word in BASELINES.items() if any(name in case["milliseconds"] for case in cases)]
    command = ["python -m benchmarks.detector", which, f"--sizes {' '.join(sizes)}", f"--batch {' '.join(batches)}"]
    command += [f"--dtype {machine['dtype']}", f"--device {machine['device']}", f"--threads {machine['threads']}"]
    command += [f"--calls {machine['calls']}", " ".join(["--rivals", *given])]
    command += [] if any("end_to_end" in case for case in cases) else ["--frames 0"]
    command += ["--layers"] if layers else []
    return tiles, sections, " \\\n  ".join([*command, f"--json {path.name}"])


def _parts(name: str) -> tuple[str, str, str]:
    """Model, HEIGHTxWIDTH and batch size in the name of a case, such as danet_s 1x256x320."""
    model, _, size = name.rpartition(" ")
    batch, _, size = size.partition("x")
    return model, size, batch


def _networks_table(cases: list[dict]) -> Table:
    baselines = list(dict.fromkeys(baseline for case in cases for baseline in case["times_as_fast_as"]))
    rows = []
    for case in cases:
        ours, video = case["milliseconds"]["deployed"], case.get("end_to_end")
        times = (f"{ours[name]:.1f}" for name in ("p50", "p95", "p99"))
        measured = (_optional(case.get("times_peak")), _optional(case.get("resident_MB"), 0))
        speed = "" if video is None else f"{video['frames_per_second']:.1f} ({video['share']:.0%})"
        rows.append((case["case"], *times, *_speedups(case, baselines), *measured, speed))
    compared = (f"vs {baseline}" for baseline in baselines)
    head = ("case", "p50 ms", "p95 ms", "p99 ms", *compared, "× matmul rate", "MB", "danet detect, frames/s")
    note = (
        "matmul rate: GFLOP/s of a large float32 product. MB: resident memory, beyond weights and Python. danet detect "
        "reads, detects and writes a video; in parentheses its speed relative to the network only."
    )
    return Table("The deployed network, and its speed-up over the baselines", head, rows, note)


def _layers(cases: list[dict], peak: float) -> list[Block]:
    """The slowest layers as bars, all layers in tables."""
    slowest: list[Block] = []
    tables: list[Block] = []
    for case in cases:
        layers = sorted(case["layers"], key=lambda layer: -layer["milliseconds"])[:LISTED_LAYERS]
        bars = [(layer["layer"], layer["milliseconds"], f"{layer['milliseconds']:.2f} ms") for layer in layers]
        slowest.append(Bars(f"{case['case']}: the slowest layers", bars))
        rows = []
        for layer in case["layers"]:
            share = layer["times_peak"]
            cost = (f"{layer['milliseconds']:.3f}", f"{layer['MFLOP']:.1f}")
            rows.append((layer["layer"], *cost, f"{share * peak:.0f}", f"{share:.2f}"))
        head = ("layer", "ms", "MFLOP", "GFLOP/s", "× matmul rate")
        tables.append(Fold(f"All layers of {case['case']}", [Table(f"Layers of {case['case']}", head, rows)]))
    return [Grid(slowest), *tables] if cases else []


def _optional(value: float | None, digits: int = 2) -> str:
    return "" if value is None else number(value, digits)
