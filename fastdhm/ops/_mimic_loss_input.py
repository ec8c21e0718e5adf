"""What the mimicking loss accepts; anything else is a ``ValueError`` that says what to do.

Legend: M branches, B batch, K classes.
"""

import torch
from torch import Tensor

from fastdhm.errors import UserError
from fastdhm.ops import _extension

Mix = tuple[Tensor, Tensor]  # target2_B, share_B
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_fits = getattr(_extension.require("a check"), "mimic_loss_fits", None) if _extension.available() else None


def check_values(
    logits_MBK: Tensor,
    target_B: Tensor,
    weights_MM: Tensor,
    ignore_index: int = -100,
    mix: Mix | None = None,
    row_weight_B: Tensor | None = None,
) -> None:
    """Read the labels and weights and refuse wrong values. It waits for the device: do not call it in every step.

    Raises:
        ValueError: a target that is neither in [0, K) nor ``ignore_index``; a share that is not in [0, 1]; a weight
            that is negative or not finite.
    """
    K = logits_MBK.shape[2]
    targets = {"target_B": target_B} | ({"target2_B": mix[0]} if mix else {})
    for name, class_B in targets.items():
        wrong_B = (class_B != ignore_index) & ((class_B < 0) | (class_B >= K))
        if wrong_B.any():
            raise UserError(
                f"{name} holds {int(class_B[wrong_B][0])}: needs a class in [0, {K}), or ignore_index ({ignore_index})"
            )
    if mix is not None:
        _check_numbers("share_B", mix[1], (mix[1] >= 0) & (mix[1] <= 1), "a number in [0, 1]")
    if row_weight_B is not None:
        is_good_B = (row_weight_B >= 0) & row_weight_B.isfinite()
        _check_numbers("row_weight_B", row_weight_B, is_good_B, "a finite number, 0 or more")
    check_weights(weights_MM)


def main_label(target_B: Tensor, mix: Mix | None) -> Tensor:
    """The class of each row; of a mixed one that of the larger share."""
    return target_B if mix is None else torch.where(mix[1] < 0.5, mix[0], target_B)


def _check_numbers(name: str, x_B: Tensor, is_good_B: Tensor, rule: str) -> None:
    if not is_good_B.all():
        raise UserError(f"{name} holds {float(x_B[~is_good_B][0]):g}: needs {rule}")


def check_weights(weights_MM: Tensor) -> None:
    """``ValueError`` if a weight is negative or not finite."""
    bad_MM = ~((weights_MM >= 0) & weights_MM.isfinite())  # written so that NaN is bad too
    if bad_MM.any():
        p, q = bad_MM.nonzero()[0].tolist()
        raise UserError(f"weights_MM[{p}, {q}] is {float(weights_MM[p, q])}: needs a finite number, 0 or more")


def fits_cpu(
    logits_MBK: Tensor, target_B: Tensor, weights_MM: Tensor, mix: Mix | None, row_weight_B: Tensor | None
) -> bool:
    """Whether these are on the CPU and pass both checks below, in a tenth of their time; else they must be asked."""
    if _fits is None or torch.compiler.is_compiling():
        return False
    return _fits(logits_MBK, target_B, weights_MM, mix, row_weight_B)


def validate(logits_MBK: Tensor, target_B: Tensor, weights_MM: Tensor) -> None:
    """``ValueError`` if shapes, dtypes or devices do not fit each other."""
    if not isinstance(logits_MBK, Tensor):
        raise UserError(
            f"logits_MBK is a {type(logits_MBK).__name__}: must be a tensor [branches, batch, classes], such as "
            "torch.stack of the branches' logits"
        )
    shape = logits_MBK.shape
    if len(shape) != 3 or shape[0] == 0 or shape[2] == 0:
        raise UserError(
            f"logits_MBK has shape {tuple(shape)}: must be [branches, batch, classes] with at least one "
            "branch and one class"
        )
    M, B, _ = shape
    if logits_MBK.dtype not in FLOAT_DTYPES:
        raise UserError(f"logits_MBK is {logits_MBK.dtype}: must be one of {', '.join(map(str, FLOAT_DTYPES))}")
    if not isinstance(target_B, Tensor) or target_B.shape != (B,) or target_B.dtype != torch.int64:
        raise UserError(
            f"target_B is {_describe(target_B)}: must be an int64 tensor ({B},), a class for each row of the logits; "
            "target.long() converts whole numbers"
        )
    validate_weights(weights_MM, M)
    _check_device("target_B", target_B, logits_MBK)
    _check_device("weights_MM", weights_MM, logits_MBK)


def validate_labels(logits_MBK: Tensor, mix: Mix | None, row_weight_B: Tensor | None) -> None:
    """``ValueError`` if the parts of mixed or weighted labels do not fit the logits."""
    if mix is None and row_weight_B is None:
        return
    if mix is not None and (not isinstance(mix, (tuple, list)) or len(mix) != 2):
        raise UserError(f"mix is {_describe(mix)}: must be (target2_B, share_B), the other classes and the shares")
    target2_B, share_B = (None, None) if mix is None else mix
    for name, tensor, dtypes, wanted in (
        ("target2_B", target2_B, (torch.int64,), mix),
        ("share_B", share_B, FLOAT_DTYPES, mix),
        ("row_weight_B", row_weight_B, FLOAT_DTYPES, row_weight_B),
    ):
        if wanted is None:
            continue
        B = logits_MBK.shape[1]
        if not isinstance(tensor, Tensor) or tensor.shape != (B,) or tensor.dtype not in dtypes:
            kind = "an int64" if torch.int64 in dtypes else "a floating point"
            raise UserError(f"{name} is {_describe(tensor)}: must be {kind} tensor ({B},), a number for each row")
        _check_device(name, tensor, logits_MBK)


def _check_device(name: str, tensor: Tensor, logits_MBK: Tensor) -> None:
    if tensor.device != logits_MBK.device:
        raise UserError(f"{name} is on {tensor.device} and the logits on {logits_MBK.device}: must be on one device")


def validate_weights(weights_MM: Tensor, M: int | None = None) -> None:
    """``ValueError`` if the weights are no matrix for ``M`` branches (``None``: any number)."""
    if not isinstance(weights_MM, Tensor) or weights_MM.dtype not in FLOAT_DTYPES or weights_MM.ndim != 2:
        fits = False
    else:
        fits = weights_MM.shape == (M or len(weights_MM),) * 2 and len(weights_MM) > 0
    if not fits:
        size = f"({M}, {M})" if M else "(M, M)"
        raise UserError(
            f"weights_MM is {_describe(weights_MM)}: must be a floating point tensor {size}, a row and a column per "
            "branch, such as fastdhm.methods.weight_matrix('dhm', M)"
        )


def validate_settings(temperature: float, label_smoothing: float, ignore_index: int) -> None:
    if (
        not isinstance(temperature, (int, float)) or not 1e-6 <= temperature <= 1e6
    ):  # its square must not overflow or vanish
        raise UserError(f"temperature is {temperature!r}: must be a number from 1e-6 to 1e6")
    if not isinstance(label_smoothing, (int, float)) or not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing is {label_smoothing!r}: must be a number in [0, 1)")
    if not isinstance(ignore_index, int) or not -(2**63) <= ignore_index < 2**63:
        raise UserError(f"ignore_index is {ignore_index!r}: must be a whole number of 64 bits")


def _describe(value) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
