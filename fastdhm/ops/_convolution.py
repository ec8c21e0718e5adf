"""What the CPU convolutions share: which tensors, types and processors they support."""

import torch
from torch import Tensor

from fastdhm.errors import UserError, unknown
from fastdhm.ops import _extension

IMPLS = ("auto", "eager", "cpp")
NAMES = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16"}


def taken(x_BCHW: Tensor, weight_KCRS: Tensor, impl: str) -> Tensor:
    """``x_BCHW`` in autocast's type; ``ValueError`` if no ``impl`` can take the two tensors."""
    if impl not in IMPLS:
        raise unknown("impl", impl, IMPLS)
    if not (x_BCHW.is_floating_point() and weight_KCRS.is_floating_point()):
        raise UserError(
            f"x is {x_BCHW.dtype} and weight {weight_KCRS.dtype}: must be floating types, convert them first"
        )
    if (x_BCHW.dtype == torch.float64) != (weight_KCRS.dtype == torch.float64):
        raise UserError(f"x is {x_BCHW.dtype} and weight {weight_KCRS.dtype}: must both be float64, or neither")
    if weight_KCRS.device != x_BCHW.device:
        raise UserError(f"x is on {x_BCHW.device} and weight on {weight_KCRS.device}: must be on one device")
    kind = x_BCHW.device.type
    if torch.is_autocast_enabled(kind) and x_BCHW.dtype != torch.float64:
        return x_BCHW.to(torch.get_autocast_dtype(kind))
    return x_BCHW


def why_not(x_BCHW: Tensor, weight_KCRS: Tensor) -> str | None:
    """Why the C++ forms cannot take these tensors, or None if they can."""
    if not _extension.available():
        return _extension.reason()
    if x_BCHW.device.type != "cpu" or x_BCHW.dtype not in NAMES:
        return f"x is {x_BCHW.dtype} on {x_BCHW.device}: must be bfloat16, float32 or float64 on cpu"
    own = torch.float64 if x_BCHW.dtype == torch.float64 else torch.float32
    if weight_KCRS.dtype != own:
        return f"weight is {weight_KCRS.dtype}: must be {own} for {x_BCHW.dtype} images"
    if not x_BCHW.numel() or not weight_KCRS.numel():
        return f"x is {tuple(x_BCHW.shape)} and weight {tuple(weight_KCRS.shape)}: must not be empty"
    width = _width(NAMES[x_BCHW.dtype])
    if width == 0:
        return f"this processor has no vector instructions for products of {x_BCHW.dtype}"
    out_channels, in_channels = weight_KCRS.shape[:2]
    if in_channels % width or out_channels % width:
        return f"channels are {in_channels} and {out_channels}: must be multiples of {width} on this processor"
    return None


def _width(dtype: str) -> int:
    return _extension.require("a convolution").conv3x3_width(dtype)


def has_matrix_units() -> bool:
    """Whether the processor has matrix units for bfloat16 (AMX): they multiply 16 times faster than its vectors."""
    return torch.cpu._is_amx_tile_supported()


def has_wide_vectors() -> bool:
    """Whether float32 uses AVX-512."""
    return _extension.available() and _extension.require("a convolution").simd() == "avx512"


# torch.compiler.assume_constant_result sets this too, but it imports the whole compiler.
for _fixed in (_width, has_matrix_units, has_wide_vectors):
    vars(_fixed)["_dynamo_marked_constant"] = True


def channels_last(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty tensor like the result of the C++ forms."""
    return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)


def sum_dtype(x: Tensor) -> torch.dtype:
    """The type in which the C++ forms sum products of ``x`` and return the gradient of the weights."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
