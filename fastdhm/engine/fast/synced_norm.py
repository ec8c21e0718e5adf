"""Batch norms whose statistics are of the batches of all processes, as if one process had computed them."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastdhm.ops.shared_norm import shared_batch_norm


class SyncedNorm(_BatchNorm):
    """A batch norm of any number of dimensions, for a network whose processes compute the same steps.

    It shares in training with gradients: whoever just asks a network for its shapes may be one process alone.
    """

    group: str

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    @property
    def shares(self) -> bool:
        """Whether a call takes the statistics of all processes."""
        return self.training and torch.is_grad_enabled()

    def forward(self, x: Tensor) -> Tensor:
        if not self.shares:
            return super().forward(x)
        momentum: float | Tensor | None = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # the mean over all batches
                momentum = 1 / self.num_batches_tracked
        return shared_batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.group, momentum or 0.0, self.eps
        )


def sync_batch_norms(model: nn.Module, group: str) -> None:
    """Have every batch norm of ``model`` share its statistics in a group of processes; "" is no group.

    Names, hooks and weights stay.
    """
    for norm in model.modules():
        if group and isinstance(norm, _BatchNorm):
            norm.__class__ = SyncedNorm
            norm.group = group  # type: ignore[assignment] # modules take any attribute
