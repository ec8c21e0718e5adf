"""A 3x3 convolution in training on a CPU, by Winograd's minimal filtering: 4 times fewer multiplications.

Legend: B batch, C channels in, K channels out, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdhm.errors import UserError
from fastdhm.ops import _convolution, _extension
from fastdhm.ops._convolution import why_not
from fastdhm.ops.conv2d import conv2d

SIDE = 4  # outputs of a tile; images below it are mostly border
# With fewer tiles, or more weights for each of them, to transform the weights takes longer than the tiles save.
FEW_TILES, MOST_WEIGHTS = 48, 2048


def conv3x3(x_BCHW: Tensor, weight_KC33: Tensor, *, impl: str = "auto") -> Tensor:
    """``y[b, k, i, j] = sum_c,u,v weight[k, c, u, v] x[b, c, i + u - 1, j + v - 1]``, x being 0 outside of the image.

    The C++ form cuts the image into tiles ``d`` of 6x6 pixels, four apart, and has for each (F(4x4, 3x3), Eq. 8 of the
    source) ``A^T [sum_c (G g G^T) * (B^T d B)] A``: 36 products for 16 outputs in place of 144, as 36 matrix products
    over channels. The gradients of x and of the weight are tiled likewise. In float32 it loses two to four times what
    torch's convolution does. In bfloat16 the transformed numbers are rounded once more: of numbers of one size 1.1% of
    a result is lost where torch loses 0.23%, more of what nearly cancels; of a whole network, where every op of either
    rounds, 2 to 2.5 times what torch's bfloat16 loses of the logits and 1.4 to 1.8 times of the gradient. Sums are
    float32, and subnormal numbers count as 0. A tile is as exact as the largest number in it: an outlier costs its
    neighbours some of their bits, what is not finite reaches all outputs of its tiles, and numbers above a twentieth of
    the largest there is may come out so. It computes channels-last, and gives the same bits on any number of threads.
    Gradients of gradients and the transforms of torch.func: by ``eager`` alone, ``cpp`` raises.

    Args:
        x_BCHW: bfloat16, float32 or float64 (any floating type with ``eager``), any strides; gets a gradient. Under
            autocast it is taken in autocast's type, float64 aside.
        weight_KC33: float32 (float64 for float64), any strides; gets a gradient.
        impl: ``eager`` (the reference), ``cpp`` (CPU), or ``auto``: ``cpp`` where it can run and pays, else
            :func:`fastdhm.ops.conv2d.conv2d`.

    Returns:
        ``y_BKHW`` of the type in which ``x_BCHW`` is taken; channels-last from ``cpp``.

    Raises:
        ValueError: shapes, types or devices that do not fit, an unknown impl, or ``cpp`` for what it cannot do.

    Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
    """
    if x_BCHW.ndim != 4 or weight_KC33.ndim != 4 or weight_KC33.shape[1:] != (x_BCHW.shape[1], 3, 3):
        shapes = f"x is {tuple(x_BCHW.shape)} and weight {tuple(weight_KC33.shape)}"
        raise UserError(f"{shapes}: they must be [B, C, H, W] and [K, C, 3, 3]")
    x_BCHW = _convolution.taken(x_BCHW, weight_KC33, impl)
    if impl == "eager":
        return conv3x3_eager(x_BCHW, weight_KC33)
    reason = why_not(x_BCHW, weight_KC33)
    if impl == "cpp" and reason is not None:
        raise UserError(f"conv3x3 with impl='cpp' cannot take this: {reason}")
    if impl == "auto" and (reason is not None or not pays(x_BCHW, weight_KC33)):
        return conv2d(x_BCHW, weight_KC33, padding=(1, 1))
    last = torch.channels_last
    return torch.ops.fastdhm.conv3x3(x_BCHW.contiguous(memory_format=last), weight_KC33.contiguous(memory_format=last))


def conv3x3_eager(x_BCHW: Tensor, weight_KC33: Tensor) -> Tensor:
    """The reference: the rule of :func:`conv3x3` in torch operations, without checks."""
    return F.conv2d(x_BCHW, weight_KC33.to(x_BCHW.dtype), padding=1)


def pays(x_BCHW: Tensor, weight_KC33: Tensor) -> bool:
    """Whether the C++ form is the faster one for these, where it can take them.

    Not for images of a few pixels, nor for a few images of many channels, nor in float64, which is one number at a
    time, to be exact; nor where the processor has matrix units for bfloat16 (AMX): those multiply 16 times faster than
    its vectors do.
    """
    batch, in_channels, height, width = x_BCHW.shape
    tiles, weights = batch * -(-height // SIDE) * -(-width // SIDE), weight_KC33.shape[0] * in_channels
    if x_BCHW.dtype == torch.float64 or min(height, width) < SIDE:
        return False
    if tiles < FEW_TILES and weights > MOST_WEIGHTS * tiles:
        return False
    return x_BCHW.dtype != torch.bfloat16 or not _convolution.has_matrix_units()


if _extension.available():

    @torch.library.register_fake("fastdhm::conv3x3")
    def _fake(x, weight):
        return _like(x, weight.shape[0])

    @torch.library.register_fake("fastdhm::conv3x3_input_grad")
    def _input_grad_fake(grad_y, weight):
        return _like(grad_y, weight.shape[1])

    @torch.library.register_fake("fastdhm::conv3x3_weight_grad")
    def _weight_grad_fake(grad_y, x):
        size = (grad_y.shape[1], x.shape[1], 3, 3)
        return _convolution.channels_last(size, _convolution.sum_dtype(x), x.device)

    def _like(x, channels):
        return _convolution.channels_last((x.shape[0], channels, *x.shape[2:]), x.dtype, x.device)
