"""A convolution in training on a CPU: torch's forward, with faster gradients where torch is slow.

Legend: B batch, C channels in, K channels out, H height, W width, R x S kernel.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdhm.errors import UserError
from fastdhm.ops import _convolution, _extension

Pair = tuple[int, ...]  # down, across


def conv2d(
    x_BCHW: Tensor, weight_KCRS: Tensor, stride: Pair = (1, 1), padding: Pair = (0, 0), *, impl: str = "auto"
) -> Tensor:
    """``y[b, k, i, j] = sum_c,r,s weight[k, c, r, s] x[b, c, i stride + r - padding, j stride + s - padding]``.

    x is 0 outside of the image. The C++ form computes the weight's gradient, ``sum_b,i,j grad_y[b, k, i, j]
    x[b, c, ...]`` with the indices of y, as matrix products over pixels. It packs one block while the next one is
    fetched from memory. The sum is in float32 and is not rounded to bfloat16, as torch's is. If the strides are no
    larger than the kernel and the weights take at most 1 MiB, the C++ form also computes the gradient of x,
    ``sum_k,r,s weight[k, c, r, s] grad_y[b, k, ...]`` with the indices of y, as products over pixels of x that lie a
    stride apart: the same taps reach them. Both gradients have the same bits on any number of threads; y and the rest
    come from torch. The C++ form computes channels-last. Only ``eager`` has second derivatives and the transforms of
    torch.func; ``cpp`` raises.

    Args:
        x_BCHW: bfloat16, float32 or float64 (any floating type with ``eager``), any strides; gets a gradient. Under
            autocast it is converted to autocast's type, except float64.
        weight_KCRS: float32 (float64 for float64), any strides; gets a gradient.
        stride: rows down and columns across, 1 or more.
        padding: rows above and below, columns left and right, 0 or more.
        impl: ``eager`` (the reference), ``cpp`` (CPU), or ``auto``: ``cpp`` if it can run and is faster, else
        ``eager``.

    Returns:
        ``y_BKHW`` in the (converted) type of ``x_BCHW``; channels-last from ``cpp``.

    Raises:
        ValueError: shapes, types or devices that do not fit, an unknown impl, or ``cpp`` with
            inputs that it cannot take.
    """
    if x_BCHW.ndim != 4 or weight_KCRS.ndim != 4 or weight_KCRS.shape[1] != x_BCHW.shape[1]:
        shapes = f"x is {tuple(x_BCHW.shape)} and weight {tuple(weight_KCRS.shape)}"
        raise UserError(f"{shapes}: must be [B, C, H, W] and [K, C, R, S]")
    pairs = all(isinstance(pair, Sequence) and len(pair) == 2 for pair in (stride, padding))
    if not pairs or min(stride) < 1 or min(padding) < 0:
        raise UserError(
            f"stride is {stride} and padding {padding}: must be pairs of whole numbers, from 1 and from 0 on"
        )
    if any(side + 2 * pad < k for side, k, pad in zip(x_BCHW.shape[2:], weight_KCRS.shape[2:], padding, strict=True)):
        shapes = f"images are {tuple(x_BCHW.shape[2:])} with padding {tuple(padding)}"
        raise UserError(f"{shapes}: must be no smaller than the kernel, {tuple(weight_KCRS.shape[2:])}")
    x_BCHW = _convolution.taken(x_BCHW, weight_KCRS, impl)
    if impl == "eager" or (impl == "auto" and not pays(x_BCHW, weight_KCRS, stride)):
        return conv2d_eager(x_BCHW, weight_KCRS, stride, padding)
    reason = why_not(x_BCHW, weight_KCRS, padding)
    if reason is not None:
        if impl == "cpp":
            raise UserError(f"conv2d with impl='cpp' cannot take these inputs: {reason}")
        return conv2d_eager(x_BCHW, weight_KCRS, stride, padding)
    last = torch.channels_last
    x_BCHW, weight_KCRS = (tensor.contiguous(memory_format=last) for tensor in (x_BCHW, weight_KCRS))
    return torch.ops.fastdhm.conv2d(x_BCHW, weight_KCRS, stride, padding)


def conv2d_eager(x_BCHW: Tensor, weight_KCRS: Tensor, stride: Pair = (1, 1), padding: Pair = (0, 0)) -> Tensor:
    """The reference: the rule of :func:`conv2d` in torch operations, without checks."""
    dtype = x_BCHW.dtype
    if dtype == torch.bfloat16 and x_BCHW.device.type == "cpu" and _has_idle_taps(x_BCHW, weight_KCRS, stride, padding):
        # in torch 2.14 the gradient of a weight that meets no pixel is memory that nobody wrote: in float32 it is right
        return F.conv2d(x_BCHW.float(), weight_KCRS.float(), stride=stride, padding=padding).to(dtype)
    return F.conv2d(x_BCHW, weight_KCRS.to(dtype), stride=stride, padding=padding)


def _has_idle_taps(x_BCHW: Tensor, weight_KCRS: Tensor, stride: Pair, padding: Pair) -> bool:
    """Whether a kernel that strides has a first or last row or column that meets padding alone."""
    if max(stride) == 1:
        return False
    for side, k, step, pad in zip(x_BCHW.shape[2:], weight_KCRS.shape[2:], stride, padding, strict=True):
        starts = range(-pad, side + pad - k + 1, step)  # of the kernel's first pixel, for each output
        if not any(0 <= start < side for start in starts) or not any(0 <= start + k - 1 < side for start in starts):
            return True
    return False


def why_not(x_BCHW: Tensor, weight_KCRS: Tensor, padding: Pair = (0, 0)) -> str | None:
    """Why the C++ form cannot take these tensors, or None if it can."""
    if any(pad >= k for k, pad in zip(weight_KCRS.shape[2:], padding, strict=True)):
        return f"padding is {tuple(padding)}: must be smaller than the kernel, {tuple(weight_KCRS.shape[2:])}"
    return _convolution.why_not(x_BCHW, weight_KCRS)


def pays(x_BCHW: Tensor, weight_KCRS: Tensor, stride: Pair) -> bool:
    """Whether the C++ form is faster for these tensors, as far as it was measured.

    It is faster in bfloat16, unless the processor has matrix units for it or there is only one image (the C++ form
    multiplies images in pairs). In float32 it is faster for strides with AVX-512; otherwise torch is as fast or faster.
    In float64 it is slower, as it computes one number at a time, to be exact.
    """
    if x_BCHW.dtype == torch.bfloat16:
        return x_BCHW.shape[0] > 1 and not _convolution.has_matrix_units()
    strides = max(stride) > 1 and weight_KCRS.shape[2:].numel() > 1
    return x_BCHW.dtype == torch.float32 and strides and _convolution.has_wide_vectors()


if _extension.available():

    @torch.library.register_fake("fastdhm::conv2d")
    def _fake(x, weight, stride, padding):
        sides = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
        size = (x.shape[0], weight.shape[0], *((side + 2 * pad - k) // step + 1 for side, k, step, pad in sides))
        return _convolution.channels_last(size, x.dtype, x.device)

    @torch.library.register_fake("fastdhm::conv2d_input_grad")
    def _input_grad_fake(grad_y, x, weight, stride, padding):
        return _convolution.channels_last(x.shape, x.dtype, x.device)

    @torch.library.register_fake("fastdhm::conv_weight_grad")
    def _weight_grad_fake(grad_y, x, kernel, stride, padding):
        size = (grad_y.shape[1], x.shape[1], *kernel)
        return _convolution.channels_last(size, _convolution.sum_dtype(x), x.device)
