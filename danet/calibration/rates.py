"""Rates of rare events: what a number of false alarms in a number of hours says about the rate behind them.

False alarms are taken to be a Poisson process. The limits are one-sided and exact (Garwood, Biometrika 28, 1936). They
also hold for a threshold that was chosen on the same footage as the lowest one with at most ``count`` false alarms: the
expected number of false alarms above the largest but ``count`` scores follows the same gamma distribution.
"""

from scipy.stats import chi2

CONFIDENCE = 0.95


def upper_limit(count: int, hours: float) -> float:
    """Upper limit of the rate per hour, with 95 % confidence, after ``count`` events in ``hours``.

    Without events it is 3 / ``hours`` (the rule of three).

    Example:
        >>> round(upper_limit(0, 1.0), 2), round(upper_limit(2, 10.0), 2)
        (3.0, 0.63)
    """
    return float(chi2.ppf(CONFIDENCE, 2 * (count + 1)) / 2 / hours)


def hours_needed(per_hour: float) -> float:
    """Duration of footage without any event that shows a rate of at most ``per_hour``, with 95 % confidence.

    Example:
        >>> round(hours_needed(0.1), 1)
        30.0
    """
    return upper_limit(0, per_hour)


def allowed_count(per_hour: float, hours: float) -> int | None:
    """Largest number of events in ``hours`` that shows a rate of at most ``per_hour``; None if even 0 does not.

    Example:
        >>> allowed_count(1.0, 2.9), allowed_count(1.0, 3.0), allowed_count(1.0, 10.0)
        (None, 0, 4)
    """
    count = -1
    while upper_limit(count + 1, hours) <= per_hour:
        count += 1
    return None if count < 0 else count
