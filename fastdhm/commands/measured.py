"""What ``fastdhm diagnose`` measures: the rows of its tables, which its pictures draw."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A convolution of B0 and its counterpart in a branch: what the filters of one have to do with the other's."""

    run: str
    layer: str
    counterpart: str
    filters: int
    channels: int
    mean_abs: float
    """Mean of ``|r|`` over the matrix."""
    mean: float
    best_match: float
    """Mean over the filters of both layers of the ``|r|`` of the filter most like each."""
    by_chance: float
    """``mean_abs`` of independent normal filters."""


@dataclass(frozen=True)
class Cosine:
    """The cosine between two paths' gradients at a fork, a mean since the log point before."""

    run: str
    step: int
    epoch: float
    name: str
    cosine: float
