"""What the CUDA kernels are to reach on an H200, and what was measured."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from benchmarks.cases import Case


def share(case: "Case", ceiling: dict[str, float]) -> float:
    """Of the bandwidth of a large copy."""
    return case.bytes / case.times["ours"] / 1e9 / ceiling["GB/s"]


def speed(rival: str) -> Callable[["Case", dict[str, float]], float]:
    """How many times as fast as the rival."""
    return lambda case, ceiling: case.times[rival] / case.times["ours"]


def time_of(rival: str) -> Callable[["Case", dict[str, float]], float]:
    """The time as a multiple of the rival's: less is better."""
    return lambda case, ceiling: case.times["ours"] / case.times[rival]


class Goal(NamedTuple):
    case: str
    direction: str
    figure: Callable[["Case", dict[str, float]], float]
    text: str
    must: float | None
    aim: float


LARGE, POINTWISE = "8x64x128x160 G4", "8x64x128x160 G4 and 1x1"
DENSE = "torchvision dense (another function)"
GOALS = [
    Goal(f"{LARGE} bfloat16", "forward", share, "share of copy bandwidth", 0.35, 0.44),
    Goal(f"{LARGE} float32", "forward", share, "share of copy bandwidth", 0.45, 0.60),
    Goal(f"{LARGE} bfloat16", "backward", share, "share of copy bandwidth", 0.10, 0.20),
    Goal(f"{LARGE} bfloat16", "forward", speed("sdc_reference"), "x eager reference", 10, 15),
    Goal(f"{LARGE} bfloat16", "forward", speed("torch.compile"), "x torch.compile", 1.5, 2.5),
    *(
        Goal(f"{POINTWISE} {dtype}", "forward", time_of(DENSE), "of the time of torchvision's dense one", 0.5, 0.3)
        for dtype in ("float16", "float32")
    ),
    *(
        Goal(f"64x{32 * G}x{H}x{H} G{G} as DCNv4", direction, speed("dcnv4"), "x DCNv4", None, 1.5)
        for H, G in ((56, 4), (28, 8), (14, 16), (7, 32))
        for direction in ("forward", "backward")
    ),
    *(
        Goal(f"32x64x128x160 k3 gate {dtype}", direction, share, "share of copy bandwidth", must, aim)
        for dtype in ("bfloat16", "float32")
        for direction, must, aim in (("forward", 0.85, 0.93), ("backward", 0.75, 0.85))
    ),
    Goal("1x256x16x20 to 256 bfloat16", "forward", time_of("cuDNN"), "of cuDNN's time", 0.75, 0.6),
]


def reached(goal: Goal, cases: list["Case"], ceiling: dict[str, float]) -> float | None:
    """The figure; None where the case or its rival was not measured."""
    for case in cases:
        if (case.name, case.direction) == (goal.case, goal.direction):
            try:
                return goal.figure(case, ceiling)
            except KeyError:
                return None
    return None


def figures(cases: list["Case"], ceiling: dict[str, float]) -> list[dict[str, object]]:
    """For the file of raw figures."""
    return [
        {
            "case": goal.case,
            "pass": goal.direction,
            "figure": goal.text,
            "must": goal.must,
            "aim": goal.aim,
            "measured": reached(goal, cases, ceiling),
        }
        for goal in GOALS
    ]


def lines(cases: list["Case"], ceiling: dict[str, float]) -> Iterator[str]:
    for goal in GOALS:
        value = reached(goal, cases, ceiling)
        less = goal.text.startswith("of ")
        words = "not measured"
        if value is not None:
            aim, must = (
                bound is not None and (value <= bound if less else value >= bound) for bound in (goal.aim, goal.must)
            )
            words = f"{value:8.2f}  {'aim reached' if aim else 'must reached' if must else 'missed'}"
        must = "    -" if goal.must is None else f"{goal.must:5.2f}"
        yield f"{goal.case:<34}{goal.direction:<9}{goal.text:<40}{must} {goal.aim:6.2f}  {words}"


def table(cases: list["Case"], ceiling: dict[str, float]) -> str:
    head = f"{'goals of an H200':<83}{'must':>5} {'aim':>6}  measured"
    return "\n".join([head, *lines(cases, ceiling)])
