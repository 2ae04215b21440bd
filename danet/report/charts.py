"""Line and scatter charts: an SVG of lines alone that stretches to any width, and letters of HTML around it.

A picture that is scaled as a whole has letters too small to read on a phone. Here the SVG has a thousand units each way
whatever its shape, strokes keep their width, and the ticks are placed in percent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from danet.report.html import Html, tag

UNITS = 1000
SERIES = 6
"""Colours and dashes that style.css has."""


@dataclass(frozen=True)
class Axis:
    """A range with its name and unit; ``log`` in powers of ten."""

    label: str
    low: float
    high: float
    log: bool = False
    step: float = 0.0
    """Least distance of two ticks; 1 for what is counted."""

    def at(self, value: float) -> float:
        """0 at the low end, 1 at the high one; what lies outside stays at the edge."""
        if self.log:
            value, low, high = (math.log(max(each, 1e-300)) for each in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def ticks(self) -> list[float]:
        if not self.log:
            step = _step(max((self.high - self.low) / 5, self.step))
            first = math.ceil(self.low / step - 1e-9)
            return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        digits = (1,) if len(decades) > 4 else (1, 2, 5) if len(decades) < 4 else (1, 3)
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        return [tick for tick in ticks if self.low <= tick * (1 + 1e-9) and tick <= self.high * (1 + 1e-9)]


Kind = Literal["line", "faint", "ceiling", "dots", "rings"]


@dataclass(frozen=True)
class Series:
    """Points and how they are shown.

    ``color`` is its number, which also chooses the dashes; a ``name`` of "" stays out of the legend; ``titles`` are
    shown where the mouse rests on a dot.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    kind: Kind = "line"
    titles: Sequence[str] = ()


def chart(title: str, series: Sequence[Series], x: Axis, y: Axis, about: str = "") -> Html:
    """A figure with a caption, a legend (if there is more than one name), and both axes."""
    paths = [_gridlines(x, y), *(part for each in series for part in _paths(each, x, y))]
    named = [each for each in series if each.name]
    legend = [tag("li", _swatch(each), each.name) for each in named] if len(named) > 1 else []
    label = f"{title}: {y.label} over {x.label}" + (f", of {', '.join(each.name for each in named)}" if named else "")
    picture = tag(
        "svg", *paths, viewBox=f"0 0 {UNITS} {UNITS}", preserveAspectRatio="none", role="img", aria_label=label
    )
    ticks = [
        *(_tick("x", "left", x.at(value), value) for value in x.ticks()),
        *(_tick("y", "bottom", y.at(value), value) for value in y.ticks()),
    ]
    return tag(
        "figure",
        tag("figcaption", tag("strong", title), *([tag("span", about)] if about else [])),
        *([tag("ul", *legend, class_="legend")] if legend else []),
        tag("p", y.label, class_="axis"),
        tag("div", picture, *ticks, class_="plot"),
        tag("p", x.label, class_="axis x"),
        class_="chart",
    )


def span(values: Sequence[float]) -> tuple[float, float]:
    """Low and high of a logarithmic axis around positive values, with some air."""
    return min(values) / 1.5, max(values) * 1.5


def top(values: Sequence[float]) -> float:
    """The high end of a linear axis from 0."""
    highest = max((value for value in values if math.isfinite(value)), default=1.0)
    return 1.05 * highest if highest > 0 else 1.0


def number(value: float) -> str:
    """Short: 0.001, 0.25, 12, 3,400, 2e-5."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


def _step(least: float) -> float:
    """The round number (1, 2 or 5 times a power of ten) that is at least this."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= least * (1 - 1e-9))


def _gridlines(x: Axis, y: Axis) -> Html:
    lines = [f"M{UNITS * x.at(value):.1f} 0V{UNITS}" for value in x.ticks()]
    lines += [f"M0 {UNITS * (1 - y.at(value)):.1f}H{UNITS}" for value in y.ticks()]
    return tag("path", class_="gridline", d="".join(lines))


def _paths(series: Series, x: Axis, y: Axis) -> list[Html]:
    style = f"s{series.color % SERIES}"
    points = [
        (UNITS * x.at(a), UNITS * (1 - y.at(b))) if math.isfinite(a) and math.isfinite(b) else None
        for a, b in zip(series.x, series.y, strict=True)
    ]
    if series.kind in ("dots", "rings"):
        dots = []
        for index, point in enumerate(points):
            if point is None:
                continue
            # A line of no length with round ends: a circle that is not stretched with the picture.
            place = f"M{point[0]:.1f} {point[1]:.1f}h0"
            title = [tag("title", series.titles[index])] if series.titles else []
            dots.append(tag("path", *title, class_=f"dot {style}", d=place))
            if series.kind == "rings":
                dots.append(tag("path", *title, class_="hole", d=place))
        return dots
    words, pen = [], "M"
    for point in points:
        if point is None:  # a gap, not a line to nowhere
            pen = "M"
            continue
        words.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        pen = "L"
    if len(words) == 1:  # a single point is no line, but is to be seen
        return [tag("path", class_=f"dot {style}", d=f"{words[0]}h0")]
    return [tag("path", class_=f"{series.kind} {style}", d="".join(words))] if words else []


def _swatch(series: Series) -> Html:
    place = "M15 6h0" if series.kind in ("dots", "rings") else "M0 6H30"
    kind = "dot" if series.kind in ("dots", "rings") else series.kind
    parts = [tag("path", class_=f"{kind} s{series.color % SERIES}", d=place)]
    if series.kind == "rings":
        parts.append(tag("path", class_="hole", d=place))
    return tag("svg", *parts, viewBox="0 0 30 12", aria_hidden="true")


def _tick(axis: str, side: str, place: float, value: float) -> Html:
    return tag("span", number(value), class_=f"tick {axis}", style=f"{side}:{100 * place:.2f}%", aria_hidden="true")
