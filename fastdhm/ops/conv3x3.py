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

SIDE = 4  # outputs along a side of a tile; smaller images are mostly border
# With fewer tiles and more weights per tile, transforming the weights takes longer than the tiles save.
FEW_TILES, MOST_WEIGHTS = 48, 2048


def conv3x3(x_BCHW: Tensor, weight_KC33: Tensor, *, impl: str = "auto") -> Tensor:
    """``y[b, k, i, j] = sum_c,u,v weight[k, c, u, v] x[b, c, i + u - 1, j + v - 1]``, x being 0 outside of the image.

    The C++ form cuts the image into tiles ``d`` of 6x6 pixels, four apart, and computes for each tile (F(4x4, 3x3),
    Eq. 8 of the source) ``A^T [sum_c (G g G^T) * (B^T d B)] A``: 36 products for 16 outputs instead of 144, as 36
    matrix products over channels. The gradients of x and of the weight use the same tiles. It computes channels-last
    and gives the same bits on any number of threads.

    Precision: in float32 the error is two to four times that of torch's convolution. In bfloat16 the transformed
    numbers are rounded once more. For numbers of similar size the error of a result is 1.1% (torch: 0.23%), and more
    where terms nearly cancel. In a whole network, where every op of both rounds, the error is 2 to 2.5 times torch's
    bfloat16 error in the logits and 1.4 to 1.8 times in the gradient. Sums are float32; subnormal numbers count as 0.
    The largest number in a tile limits its precision: an outlier costs its neighbours some of their bits. A value that
    is not finite reaches all outputs of its tiles, and values above a twentieth of the largest number of the type may
    overflow.

    Only ``eager`` has second derivatives and the transforms of torch.func; ``cpp`` raises.

    Args:
        x_BCHW: bfloat16, float32 or float64 (any floating type with ``eager``), any strides; gets a gradient. Under
            autocast it is converted to autocast's type, except float64.
        weight_KC33: float32 (float64 for float64), any strides; gets a gradient.
        impl: ``eager`` (the reference), ``cpp`` (CPU), or ``auto``: ``cpp`` if it can run and is faster, else
            :func:`fastdhm.ops.conv2d.conv2d`.

    Returns:
        ``y_BKHW`` in the (converted) type of ``x_BCHW``; channels-last from ``cpp``.

    Raises:
        ValueError: shapes, types or devices that do not fit, an unknown impl, or ``cpp`` with
            inputs that it cannot take.

    Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
    """
    if x_BCHW.ndim != 4 or weight_KC33.ndim != 4 or weight_KC33.shape[1:] != (x_BCHW.shape[1], 3, 3):
        shapes = f"x is {tuple(x_BCHW.shape)} and weight {tuple(weight_KC33.shape)}"
        raise UserError(f"{shapes}: must be [B, C, H, W] and [K, C, 3, 3]")
    x_BCHW = _convolution.taken(x_BCHW, weight_KC33, impl)
    if impl == "eager":
        return conv3x3_eager(x_BCHW, weight_KC33)
    reason = why_not(x_BCHW, weight_KC33)
    if impl == "cpp" and reason is not None:
        raise UserError(f"conv3x3 with impl='cpp' cannot take these inputs: {reason}")
    if impl == "auto" and (reason is not None or not pays(x_BCHW, weight_KC33)):
        return conv2d(x_BCHW, weight_KC33, padding=(1, 1))
    last = torch.channels_last
    return torch.ops.fastdhm.conv3x3(x_BCHW.contiguous(memory_format=last), weight_KC33.contiguous(memory_format=last))


def conv3x3_eager(x_BCHW: Tensor, weight_KC33: Tensor) -> Tensor:
    """The reference: the rule of :func:`conv3x3` in torch operations, without checks."""
    return F.conv2d(x_BCHW, weight_KC33.to(x_BCHW.dtype), padding=1)


def pays(x_BCHW: Tensor, weight_KC33: Tensor) -> bool:
    """Whether the C++ form is faster for these tensors.

    It is not for images of a few pixels, for a few images with many channels, or in float64 (one number at a time, to
    be exact). In bfloat16 it is not if the processor has matrix units (AMX): they multiply 16 times faster than
    vectors.
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
