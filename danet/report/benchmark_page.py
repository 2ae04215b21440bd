"""The report of what ``python -m benchmarks.ops --json`` or ``benchmarks.detector --json`` wrote."""

from pathlib import Path

from danet.report.charts import Axis, Kind, Series, chart, span
from danet.report.html import Html, Report, Section, bars, code, facts, fold, grid, paragraph, table

OPERATORS = ("sdc", "lcdc", "rep_conv", "softmax_gate")


def benchmark_report(path: Path, content: dict) -> Report:
    """The report of a benchmark's figures, of operators or of whole networks."""
    build = _operators if "operator" in content["cases"][0] else _detector
    tiles, sections, command = build(path, content)
    machine, ceilings = content["machine"], content["ceilings"]
    where = machine.get("gpu") or machine["cpu"]
    lead = f"{where}, {machine['threads']} threads, torch {machine['torch']}"
    lead += f", {machine['date']}, commit {machine['commit']}." if "date" in machine else "."
    measured = [
        ("large copy", f"{ceilings['GB/s']:.1f} GB/s, read and written"),
        ("large float32 product", f"{ceilings['GFLOP/s']:.1f} GFLOP/s"),
    ]
    sections += [
        Section("Machine", [facts([*((name.replace("_", " "), value) for name, value in machine.items()), *measured])]),
        Section(
            "Reproduce",
            [paragraph("In a checkout of danet, on the same machine:"), code(command, "Command that measures again")],
        ),
    ]
    return Report("Benchmark", path.stem, lead, tiles, sections)


def _operators(path: Path, content: dict) -> tuple[list, list[Section], str]:
    cases = [case for case in content["cases"] if case["seconds"].get("ours")]
    failed = [case for case in content["cases"] if case not in cases]
    names = [name for name in OPERATORS if any(case["operator"] == name for case in content["cases"])]
    names += [name for name in {case["operator"]: 0 for case in content["cases"]} if name not in names]
    tiles = [(name, _range(cases, name), "as fast as its rivals") for name in names]
    ratios = [_means(content["geometric_means"])]
    ratios += [
        _table(name, [case for case in cases if case["operator"] == name], content["ceilings"]) for name in names
    ]
    sections = [
        Section("Roofline", [_roofline(cases, names, content["ceilings"])]),
        Section("Times as fast", [*ratios, *_failed(failed)]),
        Section("Goals", _goals(content.get("goals", []))),
        Section("Cost of a call", [_dispatch(content["dispatch_us"])]),
    ]
    machine = content["machine"]
    words = ["python -m benchmarks.ops"]
    words += [names[0]] if len(names) == 1 else []
    words += ["--device cuda"] if "gpu" in machine else []
    words += [f"--threads {machine['threads']}"] if machine["threads"] != 2 else []
    return tiles, sections, " ".join([*words, f"--json {path.name}"])


def _roofline(cases: list[dict], names: list[str], ceilings: dict[str, float]) -> Html:
    """Speed over arithmetic intensity, under what memory and arithmetic allow."""
    bandwidth, peak = ceilings["GB/s"], ceilings["GFLOP/s"]
    intensity = {id(case): case["flops"] / case["bytes"] for case in cases}
    speed = {id(case): case["flops"] / case["seconds"]["ours"] / 1e9 for case in cases}
    x = Axis("arithmetic intensity, FLOP a byte", *span([*intensity.values(), peak / bandwidth]), log=True)
    y = Axis("GFLOP/s", *span([*speed.values(), peak, bandwidth * x.low * 1.5]), log=True)
    knee = peak / bandwidth
    series = [Series("ceiling", [x.low, knee, x.high], [bandwidth * x.low, peak, peak], 0, "ceiling")]
    for color, name in enumerate(names):
        kinds: tuple[tuple[Kind, bool], ...] = (("dots", True), ("rings", False))
        for kind, forward in kinds:
            shown = [case for case in cases if case["operator"] == name and (case["pass"] == "forward") == forward]
            titles = [
                f"{name} {case['case']}, {case['pass']}: {speed[id(case)]:.0f} GFLOP/s at "
                f"{intensity[id(case)]:.1f} FLOP a byte"
                for case in shown
            ]
            at = [intensity[id(case)] for case in shown], [speed[id(case)] for case in shown]
            if shown:
                series.append(Series(f"{name}, {'forward' if forward else 'backward'}", *at, color, kind, titles))
    about = (
        f"Ceiling: a large copy, {bandwidth:.1f} GB/s, and a large float32 product, {peak:.0f} GFLOP/s, measured in "
        "the same run. Two things reach above it: bytes are counted as if each tensor went through memory once, and "
        "the cache is faster; FLOP of rep_conv are those of a direct convolution, and Winograd's needs fewer."
    )
    return chart("Speed over arithmetic intensity", series, x, y, about)


def _range(cases: list[dict], name: str) -> str:
    """The least and the greatest ratio of an operator."""
    ratios = [ratio for case in cases if case["operator"] == name for ratio in case["times_as_fast_as"].values()]
    return f"{min(ratios):.1f}–{max(ratios):.1f} ×" if ratios else "-"


def _means(means: dict[str, float]) -> Html:
    rows = [(name, mean, f"{mean:.1f} ×") for name, mean in sorted(means.items(), key=lambda item: -item[1])]
    return bars("Times as fast as each rival", rows, "Geometric means over the cases that have the rival.")


def _table(name: str, cases: list[dict], ceilings: dict[str, float]) -> Html:
    rivals = list({rival: 0 for case in cases for rival in case["times_as_fast_as"]})
    rows = []
    for case in cases:
        time = case["seconds"]["ours"]
        memory, arithmetic = case["bytes"] / time / 1e9, case["flops"] / time / 1e9
        share = max(memory / ceilings["GB/s"], arithmetic / ceilings["GFLOP/s"])
        ratios = (case["times_as_fast_as"].get(rival) for rival in rivals)
        rows.append(
            (
                f"{case['case']}, {case['pass']}",
                *(f"{1e3 * time:.3f}", f"{arithmetic:.0f}", f"{memory:.1f}", f"{share:.0%}"),
                *("" if ratio is None else f"{ratio:.2f} ×" for ratio in ratios),
            )
        )
    head = ("case", "ms", "GFLOP/s", "GB/s", "of the ceiling", *(f"against {rival}" for rival in rivals))
    return table(f"{name}: times as fast as the rivals", head, rows)


def _failed(cases: list[dict]) -> list[Html]:
    rows = [(f"{case['operator']} {case['case']}", case.get("errors", {}).get("ours", "")) for case in cases]
    return [table("Not measured", ("case", "why"), rows)] if rows else []


def _goals(goals: list[dict]) -> list[Html]:
    rows = [
        (
            f"{goal['case']}, {goal['pass']}",
            goal["figure"],
            *map(_number, (goal["must"], goal["aim"], goal["measured"])),
        )
        for goal in goals
    ]
    return [table("Goals", ("case", "figure", "must", "aim", "measured"), rows)] if rows else []


def _dispatch(costs: dict[str, float]) -> Html:
    rows = [(name, cost, f"{cost:.1f} µs") for name, cost in costs.items()]
    return bars("Microseconds of a call on the smallest input", rows)


def _detector(path: Path, content: dict) -> tuple[list, list[Section], str]:
    cases, machine = content["cases"], content["machine"]
    tiles = [(case["case"], f"{case['frames_per_second']:.1f}", "frames/s, the network alone") for case in cases]
    times = [
        bars(
            f"{case['case']}, {case['GFLOP']:.2f} GFLOP",
            [(name, each["p50"], f"{each['p50']:.1f} ms") for name, each in case["milliseconds"].items()],
        )
        for case in cases
    ]
    sections = [
        Section("Milliseconds a call", [paragraph("Medians; shorter is better."), grid(*times)]),
        Section("Ratios", [_ratios(cases)]),
        Section("Speeds of the layers", _layers([case for case in cases if case.get("layers")], content["ceilings"])),
    ]
    names, sizes, batches = (
        list(dict.fromkeys(each)) for each in zip(*(_parts(case["case"]) for case in cases), strict=True)
    )
    which = f"--weights {names[0]}" if names[0].endswith(".safetensors") else f"--models {' '.join(names)}"
    words = ["python -m benchmarks.detector", which, f"--sizes {' '.join(sizes)}", f"--batch {' '.join(batches)}"]
    words += [f"--dtype {machine['dtype']}", f"--device {machine['device']}", f"--threads {machine['threads']}"]
    rivals = {"torch.compile": "compile", "onnxruntime": "onnxruntime"}
    given = [word for name, word in rivals.items() if any(name in case["milliseconds"] for case in cases)]
    words += [f"--calls {machine['calls']}", " ".join(["--rivals", *given])]
    words += [] if any("end_to_end" in case for case in cases) else ["--frames 0"]
    words += ["--layers"] if any("layers" in case for case in cases) else []
    return tiles, sections, " \\\n  ".join([*words, f"--json {path.name}"])


def _parts(name: str) -> tuple[str, str, str]:
    """Model, HEIGHTxWIDTH and batch in the name of a case, such as danet_s 1x256x320."""
    model, _, size = name.rpartition(" ")
    batch, _, size = size.partition("x")
    return model, size, batch


def _ratios(cases: list[dict]) -> Html:
    rivals = list({rival: 0 for case in cases for rival in case["times_as_fast_as"]})
    rows = []
    for case in cases:
        ours, whole = case["milliseconds"]["deployed"], case.get("end_to_end")
        ratios = (case["times_as_fast_as"].get(rival) for rival in rivals)
        rows.append(
            (
                case["case"],
                *(f"{ours[name]:.1f}" for name in ("p50", "p95", "p99")),
                *("" if ratio is None else f"{ratio:.2f} ×" for ratio in ratios),
                _number(case.get("times_peak")),
                _number(case.get("resident_MB"), 0),
                "" if whole is None else f"{whole['frames_per_second']:.1f} ({whole['share']:.0%})",
            )
        )
    head = (
        *("case", "p50 ms", "p95 ms", "p99 ms", *(f"against {rival}" for rival in rivals)),
        *("× FMA peak", "MB", "danet detect, frames/s"),
    )
    note = (
        "FMA peak: of the large product. MB: resident, beyond weights and Python. danet detect reads, finds and "
        "writes a video; in parentheses, its part of the speed of the network alone."
    )
    return table("The deployed network, and how many times as fast as the rivals", head, rows, note)


def _layers(cases: list[dict], ceilings: dict[str, float]) -> list[Html]:
    """The layers that take longest as bars, all of them in tables."""
    slow, everything = [], []
    for case in cases:
        layers = sorted(case["layers"], key=lambda layer: -layer["milliseconds"])[:12]
        longest = [(layer["layer"], layer["milliseconds"], f"{layer['milliseconds']:.2f} ms") for layer in layers]
        slow.append(bars(f"{case['case']}: the slowest layers", longest))
        rows = [
            (
                layer["layer"],
                f"{layer['milliseconds']:.3f}",
                f"{layer['MFLOP']:.1f}",
                f"{layer['times_peak'] * ceilings['GFLOP/s']:.0f}",
                f"{layer['times_peak']:.2f}",
            )
            for layer in case["layers"]
        ]
        head = ("layer", "ms", "MFLOP", "GFLOP/s", "times the FMA peak")
        everything.append(fold(f"All layers of {case['case']}", table(f"Layers of {case['case']}", head, rows)))
    return [grid(*slow), *everything] if cases else []


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
