"""Batch norms whose statistics are of the batches of all processes, as if one process had computed them.

The statistics that each keeps are averaged.

Legend: C channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastdhm.engine import distributed


class _Sum(torch.autograd.Function):
    """The sum over all processes, each of which has a loss that depends on it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        distributed.sum_(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        distributed.sum_(grad)
        return grad


class _SyncedNorm(_BatchNorm):
    """A batch norm whose statistics are of all processes' batches, in float32 or float64: what torch has for GPUs."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        wide = x if x.dtype == torch.float64 else x.float()
        number = torch.tensor(float(x.numel() // x.shape[1]))
        distributed.sum_(number)
        mean_C = _Sum.apply(wide.sum(dims)) / number
        centred = wide - mean_C.view(shape)
        var_C = _Sum.apply(centred.square().sum(dims)) / number
        mean, var = self.running_mean, self.running_var
        if mean is not None and var is not None and self.momentum is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)  # type: ignore[union-attr] # it is there where the others are
                mean.lerp_(mean_C, self.momentum)
                var.lerp_(var_C * number / (number - 1), self.momentum)
        normal = centred * (var_C + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)


def sync_batch_norms(model: nn.Module, device: torch.device) -> None:
    """Have every batch norm of ``model`` take its statistics over all processes; names, hooks and weights stay."""
    for norm in model.modules():
        if distributed.count() > 1 and isinstance(norm, _BatchNorm):
            norm.__class__ = nn.SyncBatchNorm if device.type == "cuda" else _SyncedNorm
            norm.process_group = None  # type: ignore[assignment] # all; torch.nn.SyncBatchNorm asks


@torch.no_grad()
def average_buffers(*models: nn.Module) -> None:
    """Give all processes the mean of what each has for a buffer, such as a batch norm's running statistics."""
    buffers = [buffer for model in models for buffer in model.buffers() if buffer.is_floating_point()]
    if distributed.count() > 1 and buffers:
        flat = torch.cat([buffer.double().flatten() for buffer in buffers])
        distributed.sum_(flat)
        for buffer, mean in zip(buffers, (flat / distributed.count()).split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))
