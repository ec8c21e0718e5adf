"""The products of a classifier with a chunk of its logits: forward, and backward to features and weights.

Legend: B batch, K classes, D features of the branch.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Branch(NamedTuple):
    """Features in the dtype of the products, their head, and the sums of what needs a gradient."""

    features_BD: Tensor
    weight_KD: Tensor
    bias_K: Tensor | None
    grad_features_BD: Tensor | None
    grad_weight_KD: Tensor | None
    grad_bias_K: Tensor | None

    def logits(self, out_BK: Tensor, rows: slice, classes: slice) -> None:
        """Write the logits of these rows and classes."""
        x_BD = self.features_BD[rows]
        weight_DK = self.weight_KD[classes].to(x_BD.dtype).T
        if self.bias_K is None:
            torch.mm(x_BD, weight_DK, out=out_BK)
        else:
            torch.addmm(self.bias_K[classes].to(x_BD.dtype), x_BD, weight_DK, out=out_BK)

    def backward(self, grad_BK: Tensor, rows: slice, classes: slice) -> None:
        """Add what the gradient of these logits gives to the gradients of features and head."""
        if self.grad_features_BD is not None:
            weight_KD = self.weight_KD[classes].to(grad_BK.dtype)
            _add_product(self.grad_features_BD[rows], grad_BK, weight_KD, first=classes.start == 0)
        if self.grad_weight_KD is not None:
            x_BD = self.features_BD[rows].to(grad_BK.dtype)
            _add_product(self.grad_weight_KD[classes], grad_BK.T, x_BD, first=rows.start == 0)
        if self.grad_bias_K is not None:
            self.grad_bias_K[classes] += grad_BK.sum(0, dtype=self.grad_bias_K.dtype)


def _add_product(sum_: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    if sum_.dtype == a.dtype:
        sum_.addmm_(a, b, beta=0 if first else 1)
    else:
        sum_.copy_(a @ b) if first else sum_.add_(a @ b)


def parts(whole: int, step: int) -> Iterator[slice]:
    """The whole, at most ``step`` at a time; one part even if there is nothing."""
    for start in range(0, max(whole, 1), max(step, 1)):
        yield slice(start, min(start + step, whole))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of sums, and of the loss."""
    return torch.float64 if dtype == torch.float64 else torch.float32
