"""A 3x3 convolution in training on a CPU, by Winograd's minimal filtering: 2.25 times fewer multiplications.

Legend: B batch, C channels in, K channels out, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdhm.errors import UserError
from fastdhm.ops import _extension

IMPLS = ("auto", "eager", "cpp")
NAMES = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16"}
SMALLEST = 4  # pixels a side below which tiles of 2 x 2 outputs are mostly border


def conv3x3(x_BCHW: Tensor, weight_KC33: Tensor, *, impl: str = "auto") -> Tensor:
    """``y[b, k, i, j] = sum_c,u,v weight[k, c, u, v] x[b, c, i + u - 1, j + v - 1]``, x being 0 outside of the image.

    The C++ form cuts the image into tiles ``d`` of 4x4 pixels, two apart, and has for each (F(2x2, 3x3), Eq. 8 of the
    source) ``A^T [sum_c (G g G^T) * (B^T d B)] A``: 16 products for four outputs in place of 36, as 16 matrix products
    over channels. The gradients of x and of the weight are tiled likewise. For float32 that is as exact as the plain
    sum. For bfloat16 the transformed numbers are rounded once more, sums are float32: errors are about twice those of
    torch's own convolution. It computes channels-last, and gives the same bits on any number of threads.

    Args:
        x_BCHW: bfloat16, float32 or float64 (any floating type with ``eager``), any strides; gets a gradient.
        weight_KC33: float32 (float64 for float64), any strides; gets a gradient.
        impl: ``eager`` (the reference), ``cpp`` (CPU), or ``auto``: ``cpp`` where it can run and pays, else ``eager``.

    Returns:
        ``y_BKHW`` of the type of ``x_BCHW``; channels-last from ``cpp``.

    Raises:
        ValueError: an unknown impl, or ``cpp`` for what it cannot do.

    Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
    """
    if impl not in IMPLS:
        raise UserError(f"impl is {impl!r}, must be one of {', '.join(IMPLS)}")
    reason = None if impl == "eager" else why_not(x_BCHW, weight_KC33)
    if impl == "cpp" and reason is not None:
        raise UserError(f"conv3x3 with impl='cpp' cannot take this: {reason}")
    if impl == "eager" or reason is not None or (impl == "auto" and not pays(x_BCHW)):
        return conv3x3_eager(x_BCHW, weight_KC33)
    last = torch.channels_last
    return torch.ops.fastdhm.conv3x3(x_BCHW.contiguous(memory_format=last), weight_KC33.contiguous(memory_format=last))


def conv3x3_eager(x_BCHW: Tensor, weight_KC33: Tensor) -> Tensor:
    """The reference: the rule of :func:`conv3x3` in torch operations, without checks."""
    return F.conv2d(x_BCHW, weight_KC33.to(x_BCHW.dtype), padding=1)


def why_not(x_BCHW: Tensor, weight_KC33: Tensor) -> str | None:
    """Why the C++ form cannot take these, or None where it can."""
    if not _extension.available():
        return _extension.reason()
    if x_BCHW.device.type != "cpu" or x_BCHW.dtype not in NAMES or x_BCHW.ndim != 4 or not x_BCHW.numel():
        shape = tuple(x_BCHW.shape)
        return (
            f"x is {x_BCHW.dtype} {shape} on {x_BCHW.device}, must be bfloat16, float32 or float64 [B, C, H, W] on cpu"
        )
    own = torch.float64 if x_BCHW.dtype == torch.float64 else torch.float32
    channels = x_BCHW.shape[1]
    if weight_KC33.dtype != own or weight_KC33.shape[1:] != (channels, 3, 3):
        shape = tuple(weight_KC33.shape)
        return f"weight is {weight_KC33.dtype} {shape}, must be {own} [K, {channels}, 3, 3] for {x_BCHW.dtype} images"
    width = _extension.require("conv3x3").conv3x3_width(NAMES[x_BCHW.dtype])
    if width == 0:
        return f"this processor has no vector instructions for products of {x_BCHW.dtype}"
    if channels % width or weight_KC33.shape[0] % width:
        return f"channels are {channels} and {weight_KC33.shape[0]}, must be multiples of {width} here"
    return None


def pays(x_BCHW: Tensor) -> bool:
    """Whether the C++ form is the faster one for these images, where it can take them.

    Not for images of a few pixels, nor where the processor has matrix units for bfloat16 (AMX): those multiply 16 times
    faster than its vectors do.
    """
    small = min(x_BCHW.shape[2:]) < SMALLEST
    return not small and not (x_BCHW.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported())


if _extension.available():

    @torch.library.register_fake("fastdhm::conv3x3")
    def _fake(x, weight):
        return _like(x, weight.shape[0])

    @torch.library.register_fake("fastdhm::conv3x3_input_grad")
    def _input_grad_fake(grad_y, weight):
        return _like(grad_y, weight.shape[1])

    @torch.library.register_fake("fastdhm::conv3x3_weight_grad")
    def _weight_grad_fake(grad_y, x):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        grad = x.new_empty((grad_y.shape[1], x.shape[1], 3, 3), dtype=dtype)
        return grad.contiguous(memory_format=torch.channels_last)

    def _like(x, channels):
        y = x.new_empty((x.shape[0], channels, *x.shape[2:]))
        return y.contiguous(memory_format=torch.channels_last)
