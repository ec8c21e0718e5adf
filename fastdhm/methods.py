"""A training method as a weight matrix over the terms of the mimicking loss.

Legend: M branches (B0, the main one and the deepest, then B1, B2, ...).
"""

import torch
from torch import Tensor

from fastdhm.errors import unknown

METHODS = ("baseline", "dsl", "dhm")


def weight_matrix(method: str, num_branches: int) -> Tensor:
    """The weights of ``loss = sum(W * terms)`` (Eq. 1-9): ``W[p, q]`` for teacher p and student q, float32 ``[M, M]``.

    ``baseline`` trains the main branch alone, ``dsl`` every branch on the labels, ``dhm`` every branch on the labels
    and on every other branch.

    Raises:
        ValueError: an unknown method, or no branch.
    """
    check(method)
    if num_branches < 1:
        raise ValueError(f"num_branches is {num_branches}: a network has at least its main branch")
    if method == "baseline":
        weights_MM = torch.zeros(num_branches, num_branches)
        weights_MM[0, 0] = 1
        return weights_MM
    if method == "dsl":
        return torch.eye(num_branches)
    return torch.ones(num_branches, num_branches)


def check(method: str) -> None:
    """``ValueError`` if ``method`` is not known."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)


def scale_mimicking(weights_MM: Tensor, scale: float | Tensor) -> Tensor:
    """W with its mimicking terms (off the diagonal) times ``scale``: the ramp that short runs need to get going."""
    diagonal_MM = torch.diag(torch.diag(weights_MM))
    return diagonal_MM + scale * (weights_MM - diagonal_MM)
