"""The mimicking loss: every branch learns from the labels and from every other branch (Eq. 1-9).

Legend: M branches (index 0 = main), B batch, K classes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdhm.errors import UserError, unknown
from fastdhm.ops import _fused_mimic_loss
from fastdhm.ops._mimic_loss_input import (
    FLOAT_DTYPES,
    Mix,
    check_values,
    check_weights,
    fits_cpu,
    main_label,
    validate,
    validate_labels,
    validate_settings,
    validate_weights,
)

__all__ = (
    "DEVICES",
    "FLOAT_DTYPES",
    "IMPLS",
    "MimicLoss",
    "check_values",
    "labels_of",
    "main_label",
    "mimic_loss",
    "mimic_loss_eager",
    "use_fused",
)

IMPLS = ("auto", "eager", "cpp", "triton")
DEVICES = {"cpp": "cpu", "triton": "cuda"}  # where each fused form runs
HAS_FUSED = {device: _fused_mimic_loss.why_not(form) is None for form, device in DEVICES.items()}


def mimic_loss_eager(
    logits_MBK: Tensor,
    target_B: Tensor,
    weights_MM: Tensor,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    mix: Mix | None = None,
    row_weight_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The reference of :func:`mimic_loss` in plain torch, without validation; autograd computes the gradient."""
    logits_MBK = logits_MBK.to(torch.float64 if logits_MBK.dtype == torch.float64 else torch.float32)
    weights_MM = weights_MM.to(logits_MBK.dtype)
    is_on_MM, is_ce_MM = weights_MM != 0, torch.eye(len(weights_MM), dtype=torch.bool, device=weights_MM.device)
    is_pair_MM, dtype = is_on_MM & ~is_ce_MM, logits_MBK.dtype
    labels, row_weight_B = labels_of(target_B, mix, row_weight_B, ignore_index, dtype)
    used_M = is_on_MM.any(0) | is_on_MM.any(1)
    logits_MBK = logits_MBK.where(used_M[:, None, None], 0)  # an unused branch adds nothing, even if it is NaN
    # logits without a weight or without a label get no gradient
    mimicking_MBK = logits_MBK.where(is_pair_MM.any(0)[:, None, None], logits_MBK.detach())
    classified_MB = is_on_MM.diagonal()[:, None] & (row_weight_B != 0)
    classifying_MBK = logits_MBK.where(classified_MB[..., None], logits_MBK.detach())

    x_MBK = mimicking_MBK - logits_MBK.detach().amax(-1, keepdim=True)  # else the division by T could overflow
    student_MBK = F.log_softmax(x_MBK / temperature, -1)
    teacher_MBK = student_MBK.detach()
    # a class that the teacher excludes (log P = -inf) adds 0; if only the student excludes it, the term is infinite
    gap_MMBK = (teacher_MBK[:, None] - student_MBK[None]).where(teacher_MBK[:, None] != -torch.inf, 0)
    gap_MMBK = gap_MMBK.where(is_pair_MM[:, :, None, None], gap_MMBK.detach())
    prob_MMBK = teacher_MBK.exp()[:, None].expand_as(gap_MMBK)
    summand_MMBK = (prob_MMBK * gap_MMBK).where((prob_MMBK > 0) | (gap_MMBK != torch.inf), torch.inf)  # not 0 * inf
    kl_MM = temperature**2 * summand_MMBK.sum(-1).mean(-1)

    ce_M = _cross_entropies(classifying_MBK, labels, row_weight_B, label_smoothing, ignore_index)
    terms_MM = kl_MM.where(~is_ce_MM, torch.diag(ce_M))
    terms_MM = terms_MM.where(used_M[:, None] & used_M[None], 0)
    # a weight of zero switches its term off, even an infinite one
    loss = (weights_MM * terms_MM).where(is_on_MM, 0).sum()
    return loss, terms_MM.detach()


def labels_of(
    target_B: Tensor, mix: Mix | None, row_weight_B: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """The classes of the labels, each with its share, and the weight of each row, 0 without a label."""
    labels = [(target_B, torch.ones_like(target_B, dtype=dtype))]
    if mix is not None:
        share_B = mix[1].detach().to(dtype)
        labels = [(target_B, share_B), (mix[0], 1 - share_B)]
    row_weight_B = torch.ones_like(target_B, dtype=dtype) if row_weight_B is None else row_weight_B.detach().to(dtype)
    for class_B, _ in labels:
        row_weight_B = row_weight_B.where(class_B != ignore_index, 0)
    return labels, row_weight_B


def _cross_entropies(
    logits_MBK: Tensor,
    labels: list[tuple[Tensor, Tensor]],
    row_weight_B: Tensor,
    label_smoothing: float,
    ignore_index: int,
) -> Tensor:
    """The mean cross-entropy of each branch, by the rows' weights."""
    total_M = logits_MBK.new_zeros(len(logits_MBK))
    for class_B, share_B in labels:
        each = [
            F.cross_entropy(z_BK, class_B, label_smoothing=label_smoothing, ignore_index=ignore_index, reduction="none")
            for z_BK in logits_MBK
        ]
        weight_B = row_weight_B * share_B
        total_M = total_M + (weight_B * torch.stack(each)).where(weight_B != 0, 0).sum(1)  # not 0 * inf
    all_rows = row_weight_B.sum()
    return total_M / all_rows.where(all_rows != 0, min(1, len(row_weight_B)))  # the mean of an empty batch is NaN


def mimic_loss(
    logits_MBK: Tensor,
    target_B: Tensor,
    weights_MM: Tensor,
    *,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    mix: Mix | None = None,
    row_weight_B: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the branches' cross-entropies and of the mimicking terms of all pairs, and the terms.

    With ``P_m = softmax(z_m / T)`` (Eq. 1, 2, 8, 9)::

        terms[p, q] = T^2 KL(P_p || P_q)    teacher p, student q, mean over the batch
        terms[m, m] = CE(z_m, y)            mean over the labelled rows
        loss        = sum(weights * terms)

    The teacher is a constant, so branch q gets its gradient from column q only:
    ``dloss/dz_q = 1/B [W_qq (softmax(z_q) - y~) + T sum_{p != q} W_pq (P_q - P_p)]``.

    Mixed labels (mixup, cutmix) and row weights w (imbalanced classes) change the cross-entropies only. Of row b::

        CE_b        = share_b CE(z, target_b) + (1 - share_b) CE(z, target2_b)    so y~ is the mix of both labels
        terms[m, m] = sum_b w_b CE_b / sum_b w_b                                  over the labelled rows

    Class weights are ``row_weight_B = weight_K[target_B]``: then the term is that of torch's ``weight=weight_K``. With
    a mix they are the mean by share: ``share_B * weight_K[target_B] + (1 - share_B) * weight_K[target2_B]``. (With
    label smoothing torch also weighs the other classes' part of the label; here a row has one weight.)

    A branch whose row and column of ``weights_MM`` are zero adds exactly 0, even if its logits are NaN.

    A logit of -inf excludes its class. A class that the teacher excludes adds 0 to the term. A class that only the
    student excludes makes the term infinite; so does an excluded label (with smoothing, any class). The gradient stays
    finite. A logit of NaN or +inf, or a row of only -inf, makes all its terms NaN.

    Args:
        logits_MBK: branch logits, B0 first; float32, bfloat16, float16 or float64. Gets a gradient.
        target_B: class indices, int64, in [0, K), or ``ignore_index``: such a row has no cross-entropy but keeps its
            mimicking terms. Without any labelled row the cross-entropies are 0.
        weights_MM: weight of each term, floating point, on the logits' device. Gets no gradient.
        temperature: T, from 1e-6 to 1e6, for the mimicking terms only.
        label_smoothing: in [0, 1), for the cross-entropies only.
        ignore_index: the target that means "no label". A row of which either target is that has none.
        mix: ``(target2_B, share_B)``: the other class of each row, as ``target_B``, and the share of ``target_B`` in
            the label, floating point, in [0, 1]. Gets no gradient.
        row_weight_B: weight of each row's cross-entropy, floating point, finite, 0 or more. A row of weight 0 is one
            without a label. Gets no gradient.
        impl: ``"eager"`` (plain torch, the reference), ``"cpp"`` (one pass in C++, CPU), ``"triton"`` (two launches,
            CUDA) or ``"auto"``: the fused one for the logits' device if it is available, else eager.

    Returns:
        ``(loss, terms_MM)``: a scalar, and the terms without gradient; float32, or float64 for float64 logits. With an
        empty batch both are NaN (the mean of no values). The fused forms compute the gradient in forward and have no
        second derivative.

    Raises:
        ValueError: a wrong shape, dtype, device, temperature or smoothing, an impl that is not available here, or, on
            CPU tensors, a target or share out of range, or a weight that is negative or not finite. On a GPU this check
            would wait for the device: there, such labels make the loss NaN, and :func:`check_values` finds them.
    """
    if impl not in IMPLS:
        raise unknown("impl", impl, IMPLS)
    is_checked = fits_cpu(logits_MBK, target_B, weights_MM, mix, row_weight_B)
    if not is_checked:
        validate(logits_MBK, target_B, weights_MM)
        validate_labels(logits_MBK, mix, row_weight_B)
    validate_settings(temperature, label_smoothing, ignore_index)
    weights_MM = _constant(weights_MM)
    device = "cpu" if is_checked else logits_MBK.device.type
    if not use_fused(impl, device):
        unread = torch.compiler.is_compiling() or _is_batched(target_B, weights_MM, *(mix or ()), row_weight_B)
        if device == "cpu" and not unread:  # the C++ form checks by itself
            check_values(logits_MBK, target_B, weights_MM, ignore_index, mix, row_weight_B)
        return mimic_loss_eager(
            logits_MBK, target_B, weights_MM, temperature, label_smoothing, ignore_index, mix, row_weight_B
        )
    need_grad = torch.is_grad_enabled() and logits_MBK.requires_grad
    more = [None if tensor is None else _constant(tensor) for tensor in (*(mix or (None, None)), row_weight_B)]
    loss, terms_MM, _ = _fused_mimic_loss.mimic_loss(
        logits_MBK, target_B, weights_MM, temperature, label_smoothing, ignore_index, need_grad, *more
    )
    return loss, terms_MM


def _is_batched(*tensors: Tensor | None) -> bool:
    """Whether torch.vmap maps over one of them: its values cannot be asked for."""
    functorch = torch._C._functorch
    for tensor in tensors:
        while tensor is not None and functorch.is_functorch_wrapped_tensor(tensor):
            if functorch.is_batchedtensor(tensor):
                return True
            tensor = functorch.get_unwrapped(tensor)
    return False


def _constant(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


class MimicLoss(nn.Module):
    """:func:`mimic_loss` with its weights and settings: ``loss, terms_MM = criterion(logits_MBK, target_B)``.

    ``weights_MM`` is a buffer: it moves with the module, and ``criterion.weights_MM.copy_(...)`` changes it in place.
    Arguments and errors are those of :func:`mimic_loss`.
    """

    def __init__(
        self,
        weights_MM: Tensor,
        *,
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        impl: str = "auto",
    ):
        super().__init__()
        if impl not in IMPLS:
            raise unknown("impl", impl, IMPLS)
        validate_settings(temperature, label_smoothing, ignore_index)
        validate_weights(weights_MM)
        if weights_MM.device.type == "cpu":
            check_weights(weights_MM)
        self.weights_MM: Tensor
        self.register_buffer("weights_MM", weights_MM.detach().clone())  # a copy: the caller's tensor may change
        self.settings: dict[str, Any] = {
            "temperature": temperature, "label_smoothing": label_smoothing, "ignore_index": ignore_index, "impl": impl
        }  # fmt: skip

    def forward(
        self, logits_MBK: Tensor, target_B: Tensor, mix: Mix | None = None, row_weight_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(loss, terms_MM)``."""
        return mimic_loss(logits_MBK, target_B, self.weights_MM, mix=mix, row_weight_B=row_weight_B, **self.settings)

    def extra_repr(self) -> str:
        """The settings, for ``print``."""
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())


def use_fused(impl: str, device: str) -> bool:
    """Whether to use the fused op on that type of device; ``ValueError`` if ``impl`` names one that cannot run."""
    if impl == "eager":
        return False
    if impl == "auto":
        return HAS_FUSED.get(device, False)
    if device != DEVICES[impl]:
        raise UserError(f"impl is {impl!r}: it runs on {DEVICES[impl]}, and the logits are on {device}, use 'auto'")
    reason = _fused_mimic_loss.why_not(impl)
    if reason is not None:
        raise UserError(f"impl is {impl!r}: it is not available here, as {reason}")
    return True
