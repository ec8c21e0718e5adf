"""What several seeds say: mean and spread, and differences paired by seed with a confidence interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

# Percents of up to 100 that differ by less are the same: an error in percent is a count of images divided, multiplied
# and subtracted in float64, which rounds it by some 1e-14, and one image of as many as a billion is 1e-7 percent.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Summary:
    """``n`` values: their mean and sample standard deviation (n - 1 in the denominator; ``None`` for one value)."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """The mean of ``n`` paired differences with its confidence interval and two-sided p-value; these are ``None`` for
    one pair, and where all differences are equal but for the rounding of float64: from no spread nothing follows.

    Student's t with n - 1 degrees of freedom: ``mean -+ t * std / sqrt(n)``. It takes the differences to be independent
    and about normal; with few pairs the interval is wide, as it should be.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    p_value: float | None


def summarize(values: Sequence[float]) -> Summary | None:
    """Mean and spread; ``None`` of nothing."""
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
    return Difference(n, mean, mean - half, mean + half, 2 * float(t.sf(abs(mean) / error, n - 1)))
