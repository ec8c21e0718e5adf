"""The parameter-free shortcut ("option A") of a CIFAR ResNet block that halves the image, as one op.

Legend: B batch, C channels in, K channels out, H height, W width, h and w half of them, rounded up.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdhm.errors import UserError, unknown
from fastdhm.ops import _extension

IMPLS = ("auto", "eager", "cpp")
DTYPES = (torch.float32, torch.bfloat16, torch.float64)  # of the C++ form


def shortcut(x_BCHW: Tensor, channels: int, *, impl: str = "auto") -> Tensor:
    """The mean of each 2x2 tile of pixels (fewer at an odd border), followed by channels of zeros.

    The C++ form reads and writes each number once and gives the bits of torch's operations on any number of threads.
    torch's operations fill their outputs and gradients with zeros first, and pool one number at a time. Only ``eager``
    has second derivatives; ``cpp`` raises.

    Args:
        x_BCHW: float32, bfloat16 or float64 (any floating type with ``eager``), any strides; gets a gradient.
        channels: K, at least C.
        impl: ``eager`` (the reference), ``cpp`` (CPU), or ``auto``: ``cpp`` if it can run, else ``eager``.

    Returns:
        ``y_BKhw`` in the type of ``x_BCHW``; channels-last from ``cpp``.

    Raises:
        ValueError: fewer channels than x has, an unknown impl, or ``cpp`` with inputs that it cannot take.

    Source: He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2.
    """
    if impl not in IMPLS:
        raise unknown("impl", impl, IMPLS)
    if x_BCHW.ndim != 4 or channels < x_BCHW.shape[1]:
        raise UserError(f"x is {tuple(x_BCHW.shape)}: must be [B, C, H, W] with C at most channels, {channels}")
    reason = None if impl == "eager" else why_not(x_BCHW)
    if impl == "cpp" and reason is not None:
        raise UserError(f"shortcut with impl='cpp' cannot take this input: {reason}")
    if impl == "eager" or reason is not None:
        return shortcut_eager(x_BCHW, channels)
    return torch.ops.fastdhm.shortcut(x_BCHW.contiguous(memory_format=torch.channels_last), channels)


def shortcut_eager(x_BCHW: Tensor, channels: int) -> Tensor:
    """The reference: the rule of :func:`shortcut` in torch operations, without checks."""
    y_BChw = F.avg_pool2d(x_BCHW, 2, ceil_mode=True, count_include_pad=False)
    return F.pad(y_BChw, (0, 0, 0, 0, 0, channels - x_BCHW.shape[1]))


def why_not(x_BCHW: Tensor) -> str | None:
    """Why the C++ form cannot take this tensor, or None if it can."""
    if not _extension.available():
        return _extension.reason()
    if x_BCHW.device.type != "cpu" or x_BCHW.dtype not in DTYPES or not x_BCHW.numel():
        what = f"x is {x_BCHW.dtype} {tuple(x_BCHW.shape)} on {x_BCHW.device}"
        return f"{what}: must be float32, bfloat16 or float64 on cpu, and not empty"
    return None


if _extension.available():

    @torch.library.register_fake("fastdhm::shortcut")
    def _fake(x, channels):
        batch, _, height, width = x.shape
        shape = (batch, channels, (height + 1) // 2, (width + 1) // 2)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    @torch.library.register_fake("fastdhm::shortcut_backward")
    def _backward_fake(grad_y, x):
        return torch.empty_like(x)
