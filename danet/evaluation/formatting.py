"""Text of metric values: the same digits in the terminal, in Markdown files, in plots and in reports.

The functions take the plain values and dictionaries of ``metrics.json`` and ``ablation.json``.
"""

import math

UNDEFINED = "-"


def number(value: float | None, digits: int = 3) -> str:
    """A value with a fixed number of digits; "-" for None and NaN.

    Example:
        >>> number(0.91666), number(None)
        ('0.917', '-')
    """
    return UNDEFINED if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval(estimate: dict | None) -> str:
    """The 95 % interval of an estimate, or "" where it has none."""
    return "" if estimate is None or estimate["low"] is None else f"{estimate['low']:.2f}–{estimate['high']:.2f}"


def estimate(value: dict | None) -> str:
    """An estimate with its 95 % interval in parentheses.

    Example:
        >>> estimate({"value": 0.9, "low": 0.85, "high": 0.95})
        '0.900 (0.85–0.95)'
    """
    text = number(None if value is None else value["value"])
    return f"{text} ({interval(value)})" if interval(value) else text


def difference(value: dict, *, percent: bool = False) -> str:
    """A signed difference with its 95 % interval in parentheses."""

    def signed(part: float) -> str:
        return f"{100 * part:+.0f} %" if percent else f"{part:+.3f}"

    if value["value"] is None:
        return UNDEFINED
    if value["low"] is None:
        return signed(value["value"])
    return f"{signed(value['value'])} ({signed(value['low'])} to {signed(value['high'])})"


def spread(value: dict | None, digits: int = 3) -> str:
    """Mean ± standard deviation; the mean alone for a single run."""
    if value is None:
        return UNDEFINED
    deviation = "" if value["deviation"] is None else f" ± {value['deviation']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{deviation}"
