"""Rates of rare events: what a number of false alarms in a number of hours says about the rate behind them.

The model: false alarms occur independently of each other, so that their number in some hours follows a Poisson
distribution. All limits here are upper limits with 95 % confidence: in at most 5 % of all cases, the true rate is
larger. They are exact (Garwood, Biometrika 28, 1936), also where the threshold is chosen on the same footage, in two
steps:

1. From the requested rate and the duration, but not from what is seen, ``allowed_count`` gives the number k of false
   alarms that are allowed.
2. The threshold is set just above the score of the false alarm that comes next after the k largest.

The score depends on chance, and so does m, the mean number of false alarms above this score in footage of this
duration: m follows a gamma distribution with shape k + 1. Its 95 % quantile is what ``upper_limit`` computes for k
false alarms.
"""

from scipy.stats import chi2, poisson

CONFIDENCE = 0.95


def upper_limit(count: int, hours: float) -> float:
    """Upper limit of the rate per hour, with 95 % confidence, after ``count`` false alarms in ``hours``.

    Without false alarms it is 3 / ``hours`` (the rule of three).

    Example:
        >>> round(upper_limit(0, 1.0), 2), round(upper_limit(2, 10.0), 2)
        (3.0, 0.63)
    """
    # Half of a chi-squared variable with 2 (count + 1) degrees of freedom has a gamma distribution of shape count + 1.
    return float(chi2.ppf(CONFIDENCE, 2 * (count + 1)) / 2 / hours)


def hours_needed(per_hour: float) -> float:
    """Hours of footage without false alarms that are needed to show a rate of at most ``per_hour``.

    Example:
        >>> round(hours_needed(0.1), 1)
        30.0
    """
    return upper_limit(0, per_hour)  # rate times hours is constant, so that the two may be exchanged


def allowed_count(per_hour: float, hours: float) -> int | None:
    """Largest number of false alarms in ``hours`` that still shows a rate of at most ``per_hour``.

    None if even footage without false alarms does not show it, because it is too short.

    Example:
        >>> allowed_count(1.0, 2.9), allowed_count(1.0, 3.0), allowed_count(1.0, 10.0)
        (None, 0, 4)
    """
    # A count shows the rate if so few false alarms have a probability of at most 5 % at this rate.
    count = int(poisson.ppf(1 - CONFIDENCE, per_hour * hours)) - 1
    return None if count < 0 else count
