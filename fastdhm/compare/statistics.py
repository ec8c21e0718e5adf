"""Statistics over several seeds: mean and spread, and differences paired by seed with a confidence interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, stdev

# Percentages that differ by less are equal. An error in percent is computed from a count of images in float64, with a
# rounding error of some 1e-14. One image is more than that: even in a billion images it is 1e-7 percent.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Summary:
    """``n`` values: their mean and sample standard deviation (n - 1 in the denominator; ``None`` for one value)."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """The mean of ``n`` paired differences with its confidence interval and two-sided p-value, and ``n_needed``.

    ``n_needed``, if the interval holds 0: with so many pairs a difference of this mean and spread is found in 80% of
    the cases, that is, the interval does not hold 0. ``None`` if it is found already, or if a million are too few.

    All are ``None`` for one pair, and if all differences are equal up to float64 rounding: without spread, the t-test
    says nothing. Student's t with n - 1 degrees of freedom: ``mean -+ t * std / sqrt(n)``. It assumes that the
    differences are independent and about normal; with few pairs the interval is rightly wide.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    n_needed: int | None = None


def summarize(values: Sequence[float]) -> Summary | None:
    """Mean and spread; ``None`` without values."""
    if not values:
        return None
    return Summary(len(values), fmean(values), stdev(values) if len(values) > 1 else None)


def paired_difference(
    ours: Mapping[int, float], reference: Mapping[int, float], confidence: float = 0.95
) -> Difference | None:
    """``ours`` minus ``reference`` over the seeds that both have; ``None`` if there is no such seed."""
    from scipy.stats import t  # slow to load

    differences = [value - reference[seed] for seed, value in ours.items() if seed in reference]
    summary = summarize(differences)
    if summary is None:
        return None
    if summary.std is None or max(differences) - min(differences) < ROUNDING:
        return Difference(summary.n, summary.mean, None, None, None)
    n, mean, error = summary.n, summary.mean, summary.std / math.sqrt(summary.n)
    half = float(t.isf((1 - confidence) / 2, n - 1)) * error
    needed = pairs_needed(mean / summary.std, confidence) if half >= abs(mean) else None
    return Difference(n, mean, mean - half, mean + half, 2 * float(t.sf(abs(mean) / error, n - 1)), needed)


@lru_cache
def pairs_needed(effect: float, confidence: float = 0.95, power: float = 0.8, most: int = 10**6) -> int | None:
    """The fewest pairs with which a t-test finds a mean difference of ``effect`` standard deviations.

    ``None`` if ``most`` are too few. The test of n pairs finds it with the probability that a noncentral t with n - 1
    degrees of freedom and noncentrality ``|effect| * sqrt(n)`` exceeds ``t``'s quantile of the interval; ``power`` at
    least. The other tail, a difference that is found with the wrong sign, is left out.
    """
    from scipy.stats import nct, t

    def too_few(n: int) -> bool:
        found = float(nct.sf(t.isf((1 - confidence) / 2, n - 1), n - 1, abs(effect) * math.sqrt(n)))
        return not found >= power  # NaN, of numbers too large for scipy, is too few

    if effect == 0 or too_few(most):
        return None
    low, high = 1, 2  # low is too few
    while too_few(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if too_few(middle) else (low, middle)
    return high
