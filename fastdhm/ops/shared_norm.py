"""Batch norm in training, with the statistics of the batches of all processes of a group: what one process would have.

torch's own is for GPUs alone, where the host waits for the device at each call. This one is for any device, and nothing
waits in it. A call sends one message, and so does its gradient.

Legend: C channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def summed(tensor: Tensor, group: str) -> Tensor:
    """The sum of what the processes of a group have, as an operation that a compiler can trace."""
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.all_reduce(tensor, "sum", group))


def shared_batch_norm(
    x: Tensor,
    running_mean_C: Tensor | None,
    running_var_C: Tensor | None,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    group: str,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``weight * (x - mean) / sqrt(var + eps) + bias`` over dimension 1 of ``x``, as ``torch.nn.SyncBatchNorm``.

    Batches of the processes may differ in size. A process's gradients of ``weight`` and ``bias`` are of its own batch,
    as of any parameter. Running statistics move by ``momentum`` and are the same in all processes.
    """
    y, mean_C, var_C, number = _SharedNorm.apply(x, weight_C, bias_C, eps, group)
    if running_mean_C is not None and running_var_C is not None:
        with torch.no_grad():
            unbiased_C = var_C * (number / (number - 1))
            running_mean_C.lerp_(mean_C.to(running_mean_C.dtype), momentum)
            running_var_C.lerp_(unbiased_C.to(running_var_C.dtype), momentum)
    return y


class _SharedNorm(torch.autograd.Function):
    """The norm, and its mean, variance and number of values, in float64 to be summed in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float, group: str) -> Any:
        C, wide = x.shape[1], _wide(x)
        var_C, mean_C = torch.var_mean(wide, [0, *range(2, x.ndim)], correction=0)
        mean_C, var_C = mean_C.double(), var_C.double()
        sums = torch.cat([mean_C, var_C + mean_C.square(), mean_C.new_ones(1)]) * (x.numel() // C)
        total = summed(sums, group)
        number, (mean_C, square_C) = total[-1], (total[:-1] / total[-1]).split(C)
        var_C = (square_C - mean_C.square()).clamp_min(0)
        own = mean_C.to(wide.dtype), var_C.to(wide.dtype)
        ctx.save_for_backward(x, weight_C, *own, number)
        ctx.eps, ctx.group = eps, group
        y = F.batch_norm(x, *own, weight_C, bias_C, training=False, eps=eps)
        ctx.mark_non_differentiable(mean_C, var_C, number)
        return y, mean_C, var_C, number

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> Any:
        x, weight_C, mean_C, var_C, number = ctx.saved_tensors
        scale_C = torch.ones_like(mean_C) if weight_C is None else weight_C
        _, grad_weight_C, grad_bias_C = torch.ops.aten.native_batch_norm_backward(
            grad_y, x, scale_C, mean_C, var_C, None, None, False, ctx.eps, [False, True, True]
        )  # of given statistics, so they are sums over this process's batch
        total = summed(torch.cat([grad_bias_C, grad_weight_C]).double(), ctx.group) / number
        shift_C, slope_C = total.to(mean_C.dtype).split(len(mean_C))
        shape = [1, -1, *[1] * (x.ndim - 2)]
        inverse_C = (var_C + ctx.eps).rsqrt()
        factor_C = scale_C * inverse_C
        rest = (_wide(x) - mean_C.view(shape)) * (factor_C * inverse_C * slope_C).view(shape)
        grad_x = (_wide(grad_y) - shift_C.view(shape)) * factor_C.view(shape) - rest
        affine = (None, None) if weight_C is None else (grad_weight_C, grad_bias_C)
        return grad_x.to(x.dtype), *affine, None, None


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
