"""What several seeds say: mean and spread, and differences paired by seed with a confidence interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Summary:
    """``n`` values: their mean and sample standard deviation (n - 1 in the denominator; ``None`` for one value)."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """The mean of ``n`` paired differences with its confidence interval and two-sided p-value; these are ``None`` for
    one pair, and where all differences are equal.

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
    if summary is None or summary.std is None:
        return summary and Difference(1, summary.mean, None, None, None)
    n, mean, error = summary.n, summary.mean, summary.std / math.sqrt(summary.n)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * error
    if error == 0:  # the same difference for every seed, by luck or by construction: nothing to infer from
        return Difference(n, mean, None, None, None)
    return Difference(n, mean, mean - half, mean + half, 2 * float(t.sf(abs(mean) / error, n - 1)))
