"""Performance targets of the CUDA kernels on an H200, and the values that a run measured."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from benchmarks.cases import Case


def share(case: "Case", ceiling: dict[str, float]) -> float:
    """Achieved bandwidth divided by the bandwidth of a large copy."""
    return case.bytes / case.times["ours"] / 1e9 / ceiling["GB/s"]


def speed(baseline: str) -> Callable[["Case", dict[str, float]], float]:
    """Speed-up over the baseline."""
    return lambda case, ceiling: case.times[baseline] / case.times["ours"]


def time_of(baseline: str) -> Callable[["Case", dict[str, float]], float]:
    """Time divided by the baseline's time; lower is better."""
    return lambda case, ceiling: case.times["ours"] / case.times[baseline]


def microseconds(case: "Case", ceiling: dict[str, float]) -> float:
    """The time of a call; lower is better."""
    return case.times["ours"] * 1e6


class Target(NamedTuple):
    """A measured case, the metric to compute from it, the value it must reach and the value it should reach."""

    case: str
    direction: str
    metric: Callable[["Case", dict[str, float]], float]
    text: str
    must: float | None
    aim: float


LARGE, POINTWISE = "8x64x128x160 G4", "8x64x128x160 G4 and 1x1"
DENSE = "torchvision dense (another function)"
TARGETS = [
    Target(f"{LARGE} bfloat16", "forward", share, "share of copy bandwidth", 0.38, 0.45),
    Target(f"{LARGE} float32", "forward", share, "share of copy bandwidth", 0.50, 0.60),
    Target(f"{LARGE} bfloat16", "backward", share, "share of copy bandwidth", 0.10, 0.15),
    Target(f"{LARGE} bfloat16", "forward", speed("sdc_reference"), "x eager reference", 10, 15),
    Target(f"{LARGE} bfloat16", "forward", speed("torch.compile"), "x torch.compile", 1.5, 2.5),
    *(
        Target(f"{POINTWISE} {dtype}", "forward", time_of(DENSE), "of the time of torchvision's dense one", 0.5, 0.3)
        for dtype in ("float16", "float32")
    ),
    *(
        Target(f"64x{32 * G}x{H}x{H} G{G} as DCNv4", direction, speed("dcnv4"), "x DCNv4", 1.0, 1.5)
        for H, G in ((56, 4), (28, 8), (14, 16), (7, 32))
        for direction in ("forward", "backward")
    ),
    *(
        Target(f"32x64x128x160 k3 gate {dtype}", direction, share, "share of copy bandwidth", must, aim)
        for dtype in ("bfloat16", "float32")
        for direction, must, aim in (("forward", 0.85, 0.93), ("backward", 0.75, 0.85))
    ),
    Target("1x256x16x20 to 256 bfloat16", "forward", time_of("cuDNN"), "of cuDNN's time", 0.75, 0.6),
    Target("1x256x16x20 to 256 bfloat16", "forward", microseconds, "microseconds", 3.5, 2.5),
]


def reached(target: Target, cases: list["Case"], ceiling: dict[str, float]) -> float | None:
    """The metric's value, or None if the case or its baseline was not measured."""
    for case in cases:
        if (case.name, case.direction) == (target.case, target.direction):
            try:
                return target.metric(case, ceiling)
            except KeyError:
                continue  # another case of this name may have the baseline
    return None


def to_json(cases: list["Case"], ceiling: dict[str, float]) -> list[dict[str, object]]:
    """Targets and measured values as they are written to the JSON file."""
    return [
        {
            "case": target.case,
            "pass": target.direction,
            "figure": target.text,
            "must": target.must,
            "aim": target.aim,
            "measured": reached(target, cases, ceiling),
        }
        for target in TARGETS
    ]


def lines(cases: list["Case"], ceiling: dict[str, float]) -> Iterator[str]:
    for target in TARGETS:
        value = reached(target, cases, ceiling)
        lower_is_better = target.text.startswith(("of ", "microseconds"))
        words = "not measured"
        if value is not None:
            aim, must = (
                bound is not None and (value <= bound if lower_is_better else value >= bound)
                for bound in (target.aim, target.must)
            )
            words = f"{value:8.2f}  {'aim reached' if aim else 'must reached' if must else 'missed'}"
        must = "    -" if target.must is None else f"{target.must:5.2f}"
        yield f"{target.case:<34}{target.direction:<9}{target.text:<40}{must} {target.aim:6.2f}  {words}"


def table(cases: list["Case"], ceiling: dict[str, float]) -> str:
    head = f"{'targets on an H200':<83}{'must':>5} {'aim':>6}  measured"
    return "\n".join([head, *lines(cases, ceiling)])
