"""Heads and mimicking loss in plain torch, some classes of all rows at a time, where no row's logits are kept.

Legend: M branches, B batch, K classes; a 1 is a dimension of size 1.

A first pass finds the maximum and the sum of exponentials of each row, a second one the terms and their gradient. The
meaning is that of ``mimic_loss_eager``, for any logits.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from fastdhm.ops._fused_mimic_loss import grad_dtype
from fastdhm.ops._head_products import Branch, parts, wide_dtype

NUMBERS = 6  # of a logit that the second pass holds
Chunks = Callable[[], Iterator[tuple[slice, Tensor]]]


class Share(NamedTuple):
    """Which of all classes are here, from ``first`` on, and what makes this process's sums and maxima those of all."""

    first: int
    classes: int
    sum: Callable[[Tensor], Tensor] = lambda own: own
    maximum: Callable[[Tensor], Tensor] = lambda own: own


def by_classes(
    branches: Sequence[Branch],
    step: int,
    weights_MM: Tensor,
    labels: Sequence[tuple[Tensor, Tensor]],
    label_weight_B: Tensor,
    temperature: float,
    label_smoothing: float,
    need_grad: bool,
    main_B: Tensor | None,
    share: Share | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, terms and how many rows each branch has right (by ``main_B``, if given), ``step`` classes at a time.

    Adds to the gradients of the branches: from the classes that are here, ``share`` of those of all processes.
    """
    x_BD, here = branches[0].features_BD, len(branches[0].weight_KD)
    M, B, wide = len(branches), len(x_BD), wide_dtype(x_BD.dtype)
    share = share or Share(0, here)
    K, labels = share.classes, [(class_B - share.first, share_B) for class_B, share_B in labels]
    rows, buffer_MBK = slice(0, B), x_BD.new_empty(len(branches), B, step)

    def chunks() -> Iterator[tuple[slice, Tensor]]:
        for part in parts(here, step):
            logits_MBK = buffer_MBK[..., : part.stop - part.start]
            for branch, logits_BK in zip(branches, logits_MBK, strict=True):
                branch.logits(logits_BK, rows, part)
            yield part, logits_MBK.to(wide)

    top_MB1 = torch.full((M, B, 1), torch.finfo(wide).min, dtype=wide, device=x_BD.device)
    top_MB1, log_sum_MB1, log_soft_MB1, said_MB1 = _log_sums(chunks, top_MB1, temperature, main_B is not None, share)
    weights_MM, is_on_MM = weights_MM.to(wide), weights_MM != 0
    all_labels = label_weight_B.sum()
    all_labels = all_labels.where(all_labels != 0, min(1, B))  # the mean of an empty batch is NaN
    ce_MB1 = (weights_MM.diag()[:, None] * (label_weight_B / all_labels).to(wide))[..., None]
    nll_LMB1, smooth_MB1 = [torch.zeros_like(top_MB1) for _ in labels], torch.zeros_like(top_MB1)
    kl_MM = torch.zeros(M, M, dtype=torch.float64, device=x_BD.device)
    for part, logits_MBK in chunks():
        x_MBK = logits_MBK.sub_(top_MB1)
        for (class_B, _), nll_MB1 in zip(labels, nll_LMB1, strict=True):
            at_MB1, is_here_B1 = _place(class_B, part, M)
            nll_MB1 += (log_sum_MB1 - x_MBK.gather(2, at_MB1)).where(is_here_B1, 0)
        if label_smoothing:
            smooth_MB1 += (log_sum_MB1 - x_MBK).sum(-1, keepdim=True)
        sharp_MBK = (x_MBK - log_sum_MB1).exp_() if need_grad and temperature != 1 else None
        log_prob_MBK = x_MBK.sub_(log_sum_MB1) if temperature == 1 else x_MBK.div_(temperature).sub_(log_soft_MB1)
        prob_MBK, is_finite = log_prob_MBK.exp(), _is_surely_finite(log_prob_MBK)
        grad_MBK = None
        if need_grad:
            grad_MBK = (prob_MBK if sharp_MBK is None else sharp_MBK) * ce_MB1
            _subtract_labels(grad_MBK, ce_MB1, labels, label_smoothing, part, K, is_finite)
        _mimic(log_prob_MBK, prob_MBK, weights_MM * (temperature / max(B, 1)), kl_MM, grad_MBK, is_finite)
        if grad_MBK is not None:
            for branch, grad_BK in zip(branches, grad_MBK.to(grad_dtype(x_BD.dtype)), strict=True):
                branch.backward(grad_BK, rows, part)

    ce_M = torch.zeros(M, dtype=torch.float64, device=x_BD.device)
    for (_, share_B), nll_MB1 in zip(labels, nll_LMB1, strict=True):
        each_MB1 = (1 - label_smoothing) * nll_MB1 + label_smoothing / K * smooth_MB1
        weight_B = label_weight_B * share_B
        ce_M += (weight_B * each_MB1[..., 0]).where(weight_B != 0, 0).sum(1)  # not 0 * inf
    used_M = is_on_MM.any(0) | is_on_MM.any(1)
    terms_MM = share.sum(temperature**2 * kl_MM / B + torch.diag(ce_M / all_labels))
    terms_MM = terms_MM.where(used_M[:, None] & used_M[None], 0)
    loss = (weights_MM * terms_MM).where(is_on_MM, 0).sum()
    correct_M = ce_M.new_zeros(M)
    if main_B is not None:
        correct_M += is_right(log_sum_MB1[..., 0], said_MB1[..., 0], main_B).sum(1)  # as finite as the largest logit
    return loss, terms_MM, correct_M


def is_right(top_MB: Tensor, said_MB: Tensor, main_B: Tensor) -> Tensor:
    """Whether a row's largest logit, the first of equal ones, is that of its class, and is finite."""
    return (said_MB == main_B) & top_MB.isfinite()


def _log_sums(
    chunks: Chunks, top_MB1: Tensor, temperature: float, count: bool, share: Share
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each row's maximum, the logarithms of its sums of exp(z - max) and of exp((z - max) / T), and its class.

    The class, the first with the maximum, is known if ``count``.

    ``top_MB1``: the lowest finite number, so that a chunk of -inf does not give NaN.
    """
    sum_MB1, soft_sum_MB1 = torch.zeros_like(top_MB1), torch.zeros_like(top_MB1)
    said_MB1 = torch.zeros_like(top_MB1, dtype=torch.int64)
    for part, logits_MBK in chunks():
        old_MB1 = top_MB1
        if count:
            here_MB1, at_MB1 = logits_MBK.max(-1, keepdim=True)
            said_MB1 = said_MB1.where(here_MB1 <= old_MB1, at_MB1 + part.start)
        else:
            here_MB1 = logits_MBK.amax(-1, keepdim=True)
        top_MB1 = torch.maximum(old_MB1, here_MB1)
        x_MBK, fall_MB1 = logits_MBK.sub_(top_MB1), old_MB1 - top_MB1
        if temperature != 1:
            soft_MB1 = (x_MBK / temperature).exp_().sum(-1, keepdim=True)
            soft_sum_MB1 = soft_sum_MB1 * (fall_MB1 / temperature).exp() + soft_MB1
        sum_MB1 = sum_MB1 * fall_MB1.exp() + x_MBK.exp_().sum(-1, keepdim=True)
    own_MB1, top_MB1 = top_MB1, share.maximum(top_MB1)  # a NaN may get lost here, but not in the sum
    fall_MB1 = own_MB1 - top_MB1
    log_sum_MB1 = share.sum(sum_MB1 * fall_MB1.exp()).log()
    log_soft_MB1 = log_sum_MB1 if temperature == 1 else share.sum(soft_sum_MB1 * (fall_MB1 / temperature).exp()).log()
    if count:  # the first class of all processes that have the maximum
        said_MB1 = -share.maximum(-(said_MB1 + share.first).where(own_MB1 == top_MB1, share.classes))
    return top_MB1, log_sum_MB1, log_soft_MB1, said_MB1


def _place(class_B: Tensor, part: slice, M: int) -> tuple[Tensor, Tensor]:
    """Where in the chunk each row's class is, and whether it is there."""
    is_here_B = (class_B >= part.start) & (class_B < part.stop)
    at_B = (class_B - part.start).clamp(0, part.stop - part.start - 1)
    return at_B[:, None].expand(M, -1, 1), is_here_B[:, None]


def _is_surely_finite(log_prob_MBK: Tensor) -> bool:
    """Whether no rule for infinite logits is needed. Not known on a GPU without a wait for it."""
    return log_prob_MBK.device.type == "cpu" and log_prob_MBK.numel() > 0 and bool(log_prob_MBK.amin().isfinite())


def _subtract_labels(
    grad_MBK: Tensor,
    ce_MB1: Tensor,
    labels: Sequence[tuple[Tensor, Tensor]],
    label_smoothing: float,
    part: slice,
    K: int,
    is_finite: bool,
) -> None:
    """Make the weighted probabilities the cross-entropies' gradient; without a weight it is 0, even if they are NaN."""
    if label_smoothing:
        grad_MBK -= ce_MB1 * (label_smoothing / K)
    if not is_finite:
        grad_MBK.masked_fill_(ce_MB1 == 0, 0)
    for class_B, share_B in labels:
        at_MB1, is_here_B1 = _place(class_B, part, len(grad_MBK))
        hard_B1 = (share_B.to(grad_MBK.dtype) * (1 - label_smoothing))[:, None]
        grad_MBK.scatter_add_(2, at_MB1, -(ce_MB1 * hard_B1).where(is_here_B1, 0))


def _mimic(
    log_prob_MBK: Tensor, prob_MBK: Tensor, scale_MM: Tensor, kl_MM: Tensor, grad_MBK: Tensor | None, is_finite: bool
) -> None:
    """Add the chunk's part of each pair's sum to ``kl_MM``, and its gradient."""
    for p, q in combinations(range(len(prob_MBK)), 2):
        gap_BK = log_prob_MBK[p] - log_prob_MBK[q]
        kl_MM[p, q] += _kl_sum(prob_MBK[p], gap_BK, is_finite)
        kl_MM[q, p] += _kl_sum(prob_MBK[q], gap_BK.neg_(), is_finite)
        if grad_MBK is not None:
            torch.sub(prob_MBK[q], prob_MBK[p], out=gap_BK)
            for student, scale, sign in ((q, scale_MM[p, q], 1), (p, scale_MM[q, p], -1)):
                pull_BK = gap_BK if is_finite else gap_BK.masked_fill(scale == 0, 0)
                grad_MBK[student].addcmul_(pull_BK, scale, value=sign)


def _kl_sum(prob_BK: Tensor, gap_BK: Tensor, is_finite: bool) -> Tensor:
    """sum P (log P - log Q): 0 for what the teacher P excludes, infinite for what only the student Q does."""
    summand_BK = prob_BK * gap_BK
    if not is_finite:
        # where P is 0, gap is -inf or NaN if the teacher excludes the class, +inf if only the student does
        summand_BK = summand_BK.masked_fill_((prob_BK == 0) & (gap_BK != torch.inf), 0)
        summand_BK = summand_BK.masked_fill_((prob_BK == 0) & (gap_BK == torch.inf), torch.inf)
    return summand_BK.sum()
