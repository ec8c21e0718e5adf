"""Batch norm in training, the residual added to it and the activation after it, as one op.

Legend: B batch, C channels, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdhm.errors import UserError
from fastdhm.ops import _extension

IMPLS = ("auto", "eager", "cpp")
DTYPES = (torch.float32, torch.bfloat16, torch.float64)  # of the C++ form


def batch_norm_act(
    x_BCHW: Tensor,
    running_mean_C: Tensor,
    running_var_C: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    residual_BCHW: Tensor | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
    impl: str = "auto",
) -> Tensor:
    """``relu(weight * (x - mean) / sqrt(var + eps) + bias + residual)`` with the batch's own mean and variance.

    The C++ form reads each activation twice forward and twice backward (a mean must be known before it is used) and
    writes each result once; torch's own operations, one after the other, touch them about three times as often. It
    computes channels-last, in float32 (float64 for float64), and gives the same bits on any number of threads.
    Gradients of gradients: by ``eager`` alone, ``cpp`` raises.

    Args:
        x_BCHW: float32, bfloat16 or float64 (any floating type with ``eager``), any strides; gets a gradient, as do
            ``weight_C``, ``bias_C`` and ``residual_BCHW``.
        running_mean_C, running_var_C: moved in place by ``momentum`` towards the batch's mean and unbiased variance.
        weight_C, bias_C: the scale and the shift of each channel, float32 (float64 for float64).
        residual_BCHW: added before the activation, like ``x_BCHW``; ``None`` for none.
        relu: whether there is an activation.
        impl: ``eager`` (the reference), ``cpp`` (CPU), or ``auto``: ``cpp`` where it can run, else ``eager``.

    Returns:
        ``y_BCHW`` of the type of ``x_BCHW``; channels-last from ``cpp``.

    Raises:
        ValueError: an unknown impl, or ``cpp`` for what it cannot do; as torch, one value per channel.

    Source: Ioffe and Szegedy, "Batch normalization", ICML 2015.
    """
    if impl not in IMPLS:
        raise UserError(f"impl is {impl!r}, must be one of {', '.join(IMPLS)}")
    reason = None if impl == "eager" else why_not(x_BCHW, weight_C, residual_BCHW)
    if impl == "cpp" and reason is not None:
        raise UserError(f"batch_norm_act with impl='cpp' cannot take this: {reason}")
    running = (running_mean_C, running_var_C)
    if impl == "eager" or reason is not None:
        return batch_norm_act_eager(x_BCHW, *running, weight_C, bias_C, residual_BCHW, momentum, eps, relu)
    count = x_BCHW.numel() // x_BCHW.shape[1]
    if count < 2:
        raise UserError(f"x is {tuple(x_BCHW.shape)}: batch norm needs more than one value per channel in training")
    y_BCHW, mean_C, var_C = torch.ops.fastdhm.batch_norm_act(
        _channels_last(x_BCHW), weight_C, bias_C, _channels_last(residual_BCHW), eps, relu
    )
    with torch.no_grad():
        running_mean_C.lerp_(mean_C.to(running_mean_C.dtype), momentum)
        running_var_C.lerp_((var_C * (count / (count - 1))).to(running_var_C.dtype), momentum)
    return y_BCHW


def batch_norm_act_eager(x, running_mean, running_var, weight, bias, residual, momentum, eps, relu):
    """The reference: the rule of :func:`batch_norm_act` in torch operations, without checks."""
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training=True, momentum=momentum, eps=eps)
    y = y if residual is None else y + residual
    return F.relu(y) if relu else y


def why_not(x_BCHW: Tensor, weight_C: Tensor, residual_BCHW: Tensor | None) -> str | None:
    """Why the C++ form cannot take these, or None where it can."""
    if not _extension.available():
        return _extension.reason()
    if x_BCHW.device.type != "cpu" or x_BCHW.dtype not in DTYPES or x_BCHW.ndim != 4 or not x_BCHW.numel():
        shape = tuple(x_BCHW.shape)
        return (
            f"x is {x_BCHW.dtype} {shape} on {x_BCHW.device}, must be float32, bfloat16 or float64 [B, C, H, W] on cpu"
        )
    own = torch.float64 if x_BCHW.dtype == torch.float64 else torch.float32
    if weight_C.dtype != own:
        return f"weight is {weight_C.dtype}, must be {own} for {x_BCHW.dtype} activations"
    if residual_BCHW is not None and (residual_BCHW.shape, residual_BCHW.dtype) != (x_BCHW.shape, x_BCHW.dtype):
        return f"residual is {residual_BCHW.dtype} {tuple(residual_BCHW.shape)}, must be like x"
    return None


def _channels_last(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous(memory_format=torch.channels_last)


def _setup_context(ctx, inputs, output):
    x, weight, bias, residual, ctx.eps, ctx.relu = inputs
    y, mean, var = output
    ctx.has_residual = residual is not None
    # Where the relu cut y off shows in y, but in x too if nothing else was added: then y need not be kept nor read.
    ctx.save_for_backward(x, weight, bias, mean, var, *([y] if ctx.relu and ctx.has_residual else []))
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, _grad_mean, _grad_var):
    if grad_y is None:
        return (None,) * 6
    x, weight, bias, mean, var, *y = ctx.saved_tensors
    grad_y = _channels_last(grad_y.to(x.dtype))
    need_masked = bool(y) and ctx.needs_input_grad[3]
    grad_x, grad_weight, grad_bias, masked = torch.ops.fastdhm.batch_norm_act_backward(
        grad_y, x, y[0] if y else None, weight, bias, mean, var, ctx.eps, ctx.relu, need_masked
    )
    grad_residual = (masked if need_masked else grad_y) if ctx.has_residual else None
    return grad_x, grad_weight, grad_bias, grad_residual, None, None


if _extension.available():

    @torch.library.register_fake("fastdhm::batch_norm_act")
    def _fake(x, weight, bias, residual, eps, relu):
        return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)

    @torch.library.register_fake("fastdhm::batch_norm_act_backward")
    def _backward_fake(grad_y, x, y, weight, bias, mean, variance, eps, relu, need_residual):
        masked = torch.empty_like(x) if need_residual else x.new_empty(0)
        return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight), masked

    torch.library.register_autograd("fastdhm::batch_norm_act", _backward, setup_context=_setup_context)
