"""Batch norm in training, the addition of a residual and the activation, as one op.

Legend: B batch, C channels, H height, W width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdhm.errors import UserError, unknown
from fastdhm.ops import _extension

IMPLS = ("auto", "eager", "cpp")
DTYPES = (torch.float32, torch.bfloat16, torch.float64)  # of the C++ form
VECTORS = ("running_mean", "running_var", "weight", "bias")


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

    The C++ form reads each activation twice in forward and twice in backward (a mean must be known before its use), and
    writes each result once. torch's separate operations access memory about three times as often. The C++ form computes
    channels-last, in float32 (float64 for float64), and gives the same bits on any number of threads. Only ``eager``
    has second derivatives; ``cpp`` raises.

    Args:
        x_BCHW: float32, bfloat16 or float64 (any floating type with ``eager``), any strides; gets a gradient, as do
            ``weight_C``, ``bias_C`` and ``residual_BCHW``.
        running_mean_C, running_var_C: updated in place: moved by ``momentum`` towards the batch's mean and unbiased
            variance.
        weight_C, bias_C: the scale and the shift of each channel. All four vectors are float32 (float64 for float64).
        residual_BCHW: added before the activation, like ``x_BCHW``; ``None`` for none.
        relu: whether there is an activation.
        impl: ``eager`` (the reference), ``cpp`` (CPU), or ``auto``: ``cpp`` if it can run, else ``eager``.

    Returns:
        ``y_BCHW`` in the type of ``x_BCHW``; channels-last from ``cpp``.

    Raises:
        ValueError: an unknown impl, ``cpp`` with inputs that it cannot take, or (as in torch) one value per channel.

    Source: Ioffe and Szegedy, "Batch normalization", ICML 2015.
    """
    if impl not in IMPLS:
        raise unknown("impl", impl, IMPLS)
    vectors = (running_mean_C, running_var_C, weight_C, bias_C)
    reason = None if impl == "eager" else why_not(x_BCHW, vectors, residual_BCHW)
    if impl == "cpp" and reason is not None:
        raise UserError(f"batch_norm_act with impl='cpp' cannot take these inputs: {reason}")
    if impl == "eager" or reason is not None:
        return batch_norm_act_eager(x_BCHW, *vectors, residual_BCHW, momentum, eps, relu)
    if x_BCHW.numel() == x_BCHW.shape[1]:
        raise UserError(f"x is {tuple(x_BCHW.shape)}: must have more than one value per channel in training")
    x_BCHW = _channels_last(x_BCHW)
    residual_BCHW = None if residual_BCHW is None else _channels_last(residual_BCHW)
    return torch.ops.fastdhm.batch_norm_act(x_BCHW, *vectors, residual_BCHW, momentum, eps, relu)[0]


def batch_norm_act_eager(x, running_mean, running_var, weight, bias, residual, momentum, eps, relu):
    """The reference: the rule of :func:`batch_norm_act` in torch operations, without checks."""
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training=True, momentum=momentum, eps=eps)
    y = y if residual is None else y + residual
    return F.relu(y) if relu else y


def why_not(x_BCHW: Tensor, vectors: Sequence[Tensor | None], residual_BCHW: Tensor | None) -> str | None:
    """Why the C++ form cannot take these tensors, or None if it can."""
    if not _extension.available():
        return _extension.reason()
    dtype = x_BCHW.dtype
    if x_BCHW.device.type != "cpu" or dtype not in DTYPES or x_BCHW.ndim != 4 or not x_BCHW.numel():
        what = f"x is {dtype} {tuple(x_BCHW.shape)} on {x_BCHW.device}"
        return f"{what}: must be float32, bfloat16 or float64 [B, C, H, W] on cpu"
    own = torch.float64 if dtype == torch.float64 else torch.float32
    for name, vector_C in zip(VECTORS, vectors, strict=True):
        if vector_C is None or vector_C.dtype != own or not vector_C.is_contiguous():
            what = "None" if vector_C is None else f"{vector_C.dtype} with strides {vector_C.stride()}"
            return f"{name} is {what}: must be contiguous and {own} for {dtype} activations"
    if residual_BCHW is not None and (residual_BCHW.dtype != dtype or residual_BCHW.shape != x_BCHW.shape):
        return f"residual is {residual_BCHW.dtype} {tuple(residual_BCHW.shape)}: must be like x"
    return None


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


if _extension.available():

    @torch.library.register_fake("fastdhm::batch_norm_act")
    def _fake(x, running_mean, running_var, weight, bias, residual, momentum, eps, relu):
        return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)

    @torch.library.register_fake("fastdhm::batch_norm_act_backward")
    def _backward_fake(grad_y, x, y, weight, bias, mean, variance, eps, relu, need_residual):
        masked = torch.empty_like(x) if need_residual else x.new_empty(0)
        return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight), masked
