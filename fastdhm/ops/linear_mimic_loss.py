"""Classifier heads and the mimicking loss as one op that never holds all logits, for 10^5 classes and more.

Legend: M branches (index 0 = main), B batch, K classes, D features, of each branch its own number.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdhm.errors import UserError, unknown
from fastdhm.ops import _chunked_mimic_loss
from fastdhm.ops._mimic_loss_by_classes import is_right
from fastdhm.ops._mimic_loss_input import (
    FLOAT_DTYPES,
    Mix,
    check_values,
    main_label,
    validate,
    validate_labels,
    validate_settings,
)
from fastdhm.ops.mimic_loss import IMPLS, mimic_loss_eager, use_fused

__all__ = ("linear_mimic_loss", "linear_mimic_loss_eager")


def linear_mimic_loss_eager(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Sequence[Tensor] | None,
    target_B: Tensor,
    weights_MM: Tensor,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    mix: Mix | None = None,
    row_weight_B: Tensor | None = None,
    count_correct: bool = False,
) -> tuple[Tensor, ...]:
    """The reference of :func:`linear_mimic_loss`, without validation: the heads, then ``mimic_loss_eager``."""
    used_M = (weights_MM != 0).any(0) | (weights_MM != 0).any(1)
    biases: Sequence[Tensor | None] = bias or [None] * len(features)
    logits = []
    for x_BD, weight_KD, bias_K, used in zip(features, weights, biases, used_M, strict=True):
        logits.append(F.linear(x_BD.where(used, 0), weight_KD.where(used, 0), bias_K))  # 0: it may be NaN where unused
    logits_MBK = torch.stack(logits)
    found = mimic_loss_eager(
        logits_MBK, target_B, weights_MM, temperature, label_smoothing, ignore_index, mix, row_weight_B
    )
    if not count_correct:
        return found
    is_right_MB = is_right(*logits_MBK.detach().max(2), main_label(target_B, mix))
    return *found, is_right_MB.sum(1).double().where(used_M, 0)


def linear_mimic_loss(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Sequence[Tensor] | None,
    target_B: Tensor,
    weights_MM: Tensor,
    *,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    mix: Mix | None = None,
    row_weight_B: Tensor | None = None,
    chunk_mib: float | None = None,
    count_correct: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, ...]:
    """:func:`mimic_loss` of the branches' heads, whose logits exist for a chunk at a time (Eq. 1-9).

    It returns ``mimic_loss(torch.stack(logits), target_B, weights_MM, ...)`` with ``logits[m] = features[m] @
    weights[m].T + bias[m]``. Each chunk's gradient is made at once and becomes part of the gradients of features and
    heads. So memory holds inputs, their gradients and ``chunk_mib``, and no tensor of all rows and classes.

    A chunk is all classes of some rows, and a logit takes three products of its head, as in the whole. If fewer than 32
    rows fit (or if the device has no fused loss here), a chunk is some classes of all rows. This needs little memory,
    but each logit is computed twice: four products.

    Args:
        features: of each branch, B0 first, ``[B, D_m]``; float32, bfloat16, float16 or float64. Get gradients.
        weights: of each branch's head, ``[K, D_m]``. Get gradients. A tensor that needs none costs no product for it.
        bias: of each head, ``[K]``, or None. Get gradients.
        target_B, weights_MM, temperature, label_smoothing, ignore_index, mix, row_weight_B: as in :func:`mimic_loss`.
        chunk_mib: MiB for a chunk: its logits, the gradient of a few of its rows, and, where heads are narrower than
            float32 and rows come in several chunks, the float32 sums of the heads' gradients. Default: 192, or a 32nd
            of a GPU's memory.
        count_correct: also return how many rows each branch has right: those whose class (with ``mix``, that of the
            larger share) has the largest logit, the first of equal ones, if that is finite. A branch without a weight
            has none.
        impl: ``"eager"`` (the heads, then the reference: all logits at once), ``"cpp"`` or ``"triton"`` (the fused loss
            of a chunk of rows), or ``"auto"``: the fused one for this device, else chunks of classes in plain torch.

    Returns:
        ``(loss, terms_MM)``, as :func:`mimic_loss`, and with ``count_correct`` float64 ``correct_M``.

        Gradients are made in forward if an input needs one; there is no second derivative. Under autocast, products
        take its dtype, as ``torch.nn.functional.linear`` does. Products of bfloat16 and float16 have sums of float32;
        in float16, those of the gradients are float32 throughout.

    Raises:
        ValueError: as :func:`mimic_loss`, features and heads that do not fit each other, or a chunk too small.
    """
    if impl not in IMPLS:
        raise unknown("impl", impl, IMPLS)
    bias = [] if bias is None else bias
    like_MBK = validate_all(features, weights, bias, target_B, weights_MM, mix, row_weight_B, chunk_mib)
    validate_settings(temperature, label_smoothing, ignore_index)
    weights_MM, dtype, is_fused = weights_MM.detach(), like_MBK.dtype, use_fused(impl, like_MBK.device.type)
    if impl == "eager":
        if like_MBK.device.type == "cpu" and not torch.compiler.is_compiling():  # the other forms check by themselves
            check_values(like_MBK, target_B, weights_MM, ignore_index, mix, row_weight_B)
        each = (temperature, label_smoothing, ignore_index, mix, row_weight_B, count_correct)
        return linear_mimic_loss_eager(features, weights, bias, target_B, weights_MM, *each)
    need_grad = [torch.is_grad_enabled() and x.requires_grad for x in (*features, *weights, *bias)]
    more = [None if tensor is None else tensor.detach() for tensor in (*(mix or (None, None)), row_weight_B)]
    settings = (temperature, label_smoothing, ignore_index, dtype, chunk_mib, is_fused, count_correct, need_grad)
    loss, terms_MM, correct_M, _ = _chunked_mimic_loss.linear_mimic_loss(
        list(features), list(weights), list(bias), target_B, weights_MM, *settings, *more
    )
    return (loss, terms_MM, correct_M) if count_correct else (loss, terms_MM)


def validate_all(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Sequence[Tensor],
    target_B: Tensor,
    weights_MM: Tensor,
    mix: Mix | None,
    row_weight_B: Tensor | None,
    chunk_mib: float | None,
) -> Tensor:
    """``ValueError`` if tensors do not fit each other; returns what has the logits' shape and dtype, and no memory."""
    dtype = _validate_heads(features, weights, bias)
    if chunk_mib is not None and not (isinstance(chunk_mib, (int, float)) and 0 < chunk_mib < math.inf):
        raise UserError(f"chunk_mib is {chunk_mib!r}: must be a number of MiB above 0, or None")
    like_MBK = features[0].new_zeros((), dtype=dtype).expand(len(features), len(features[0]), len(weights[0]))
    validate(like_MBK, target_B, weights_MM)
    validate_labels(like_MBK, mix, row_weight_B)
    return like_MBK


def _validate_heads(features: Sequence[Tensor], weights: Sequence[Tensor], bias: Sequence[Tensor]) -> torch.dtype:
    """``ValueError`` if features and heads do not fit each other; returns the dtype of the products."""
    for name, values in {"features": features, "weights": weights, "bias": bias}.items():
        if not isinstance(values, (list, tuple)) or not all(isinstance(x, Tensor) for x in values):
            raise UserError(f"{name} is a {type(values).__name__}: must be a list with a tensor for each branch")
    M = len(features)
    if M == 0 or len(weights) != M or len(bias) not in (0, M):
        raise UserError(
            f"there are {M} features, {len(weights)} weights and {len(bias)} bias: must be one of each for "
            "every branch (bias may be None)"
        )
    x_BD, weight_KD = features[0], weights[0]
    B, K = (len(x) if x.ndim else 0 for x in (x_BD, weight_KD))
    device = x_BD.device
    is_float64 = torch.float64 in {x.dtype for x in (*features, *weights, *bias)}
    is_cast = torch.is_autocast_enabled(device.type) and not is_float64  # autocast leaves float64 alone
    for m in range(M):
        D = features[m].shape[-1] if features[m].ndim else 0
        for name, x, shape in (
            ("features", features[m], (B, D)),
            ("weights", weights[m], (K, D)),
            *([("bias", bias[m], (K,))] if bias else []),
        ):
            if x.shape != shape or 0 in shape[-1:]:
                raise UserError(
                    f"{name}[{m}] has shape {tuple(x.shape)}: must be {shape}; features are [batch, features], "
                    "weights [classes, features] and bias [classes]"
                )
            if x.dtype not in FLOAT_DTYPES or (x.dtype != x_BD.dtype and not is_cast):
                one = f"{x_BD.dtype}, as features[0]" if x_BD.dtype in FLOAT_DTYPES else "a floating point type"
                raise UserError(f"{name}[{m}] is {x.dtype}: must be {one}; other types need torch.autocast")
            if x.device != device:
                raise UserError(f"{name}[{m}] is on {x.device} and features[0] on {device}: must be on one device")
    return torch.get_autocast_dtype(device.type) if is_cast else x_BD.dtype
