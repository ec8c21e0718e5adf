"""What ``fastdhm diagnose`` measures: the rows of its tables and plots."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A convolution of B0 and its counterpart in a branch: how their filters are correlated."""

    run: str
    layer: str
    counterpart: str
    filters: int
    channels: int
    mean_abs: float
    """Mean of ``|r|`` over the matrix."""
    mean: float
    best_match: float
    """For each filter of both layers, ``|r|`` with the most similar filter of the other layer; the mean of these."""
    by_chance: float
    """``mean_abs`` of independent normal filters."""


@dataclass(frozen=True)
class Cosine:
    """The cosine between the gradients of two paths at a fork: the mean since the last log point."""

    run: str
    step: int
    epoch: float
    name: str
    cosine: float
