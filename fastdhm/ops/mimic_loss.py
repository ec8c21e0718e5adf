"""The mimicking loss: every branch learns from the labels and from every other branch (Eq. 1-9).

Legend: M branches (index 0 = main), B batch, K classes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdhm.errors import UserError, unknown
from fastdhm.ops import _fused_mimic_loss

IMPLS = ("auto", "eager", "cpp", "triton")
DEVICES = {"cpp": "cpu", "triton": "cuda"}  # where each fused form runs
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def mimic_loss_eager(
    logits_MBK: Tensor,
    target_B: Tensor,
    weights_MM: Tensor,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:
    """The reference of :func:`mimic_loss` in plain torch, without validation; autograd computes the gradient."""
    logits_MBK = logits_MBK.to(torch.float64 if logits_MBK.dtype == torch.float64 else torch.float32)
    weights_MM = weights_MM.to(logits_MBK.dtype)
    is_on_MM, is_ce_MM = weights_MM != 0, torch.eye(len(weights_MM), dtype=torch.bool, device=weights_MM.device)
    is_pair_MM, is_labelled_B = is_on_MM & ~is_ce_MM, target_B != ignore_index
    used_M = is_on_MM.any(0) | is_on_MM.any(1)
    logits_MBK = logits_MBK.where(used_M[:, None, None], 0)  # an unused branch adds nothing, even if it is NaN
    # logits without a weight or without a label get no gradient
    mimicking_MBK = logits_MBK.where(is_pair_MM.any(0)[:, None, None], logits_MBK.detach())
    classifying_MBK = logits_MBK.where((is_on_MM.diagonal()[:, None] & is_labelled_B)[..., None], logits_MBK.detach())

    x_MBK = mimicking_MBK - logits_MBK.detach().amax(-1, keepdim=True)  # else the division by T could overflow
    student_MBK = F.log_softmax(x_MBK / temperature, -1)
    teacher_MBK = student_MBK.detach()
    # a class that the teacher excludes (log P = -inf) adds 0; if only the student excludes it, the term is infinite
    gap_MMBK = (teacher_MBK[:, None] - student_MBK[None]).where(teacher_MBK[:, None] != -torch.inf, 0)
    gap_MMBK = gap_MMBK.where(is_pair_MM[:, :, None, None], gap_MMBK.detach())
    prob_MMBK = teacher_MBK.exp()[:, None].expand_as(gap_MMBK)
    summand_MMBK = (prob_MMBK * gap_MMBK).where((prob_MMBK > 0) | (gap_MMBK != torch.inf), torch.inf)  # not 0 * inf
    kl_MM = temperature**2 * summand_MMBK.sum(-1).mean(-1)

    num_labelled = is_labelled_B.sum().clamp(min=min(1, len(target_B)))  # the mean of nothing is NaN
    ce_M = torch.stack([
        F.cross_entropy(z_BK, target_B, label_smoothing=label_smoothing, ignore_index=ignore_index, reduction="sum")
        for z_BK in classifying_MBK
    ])  # fmt: skip
    terms_MM = kl_MM.where(~is_ce_MM, torch.diag(ce_M / num_labelled))
    terms_MM = terms_MM.where(used_M[:, None] & used_M[None], 0)
    # a weight of zero switches its term off, even an infinite one
    loss = (weights_MM * terms_MM).where(is_on_MM, 0).sum()
    return loss, terms_MM.detach()


def mimic_loss(
    logits_MBK: Tensor,
    target_B: Tensor,
    weights_MM: Tensor,
    *,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the branches' cross-entropies and of the mimicking terms of all pairs, and the terms.

    With ``P_m = softmax(z_m / T)`` (Eq. 1, 2, 8, 9)::

        terms[p, q] = T^2 KL(P_p || P_q)    teacher p, student q, mean over the batch
        terms[m, m] = CE(z_m, y)            mean over the labelled rows
        loss        = sum(weights * terms)

    The teacher is a constant, so branch q gets its gradient from column q only:
    ``dloss/dz_q = 1/B [W_qq (softmax(z_q) - y~) + T sum_{p != q} W_pq (P_q - P_p)]``.
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
        ignore_index: the target that means "no label".
        impl: ``"eager"`` (plain torch, the reference), ``"cpp"`` (one pass in C++, CPU), ``"triton"`` (two launches,
            CUDA) or ``"auto"``: the fused one for the logits' device if it is available, else eager.

    Returns:
        ``(loss, terms_MM)``: a scalar, and the terms without gradient; float32, or float64 for float64 logits. With an
        empty batch both are NaN (the mean of no values). The fused forms compute the gradient in forward and have no
        second derivative.

    Raises:
        ValueError: a wrong shape, dtype, device, temperature or smoothing, an impl that is not available here, or, on
            CPU tensors, a target out of range or a weight that is negative or not finite. On a GPU this check would
            wait for the device: there, a target out of range makes the loss NaN, and :func:`check_values` finds it.
    """
    if impl not in IMPLS:
        raise unknown("impl", impl, IMPLS)
    _validate(logits_MBK, target_B, weights_MM)
    _validate_settings(temperature, label_smoothing, ignore_index)
    weights_MM = weights_MM.detach()
    if not use_fused(impl, logits_MBK.device.type):
        if logits_MBK.device.type == "cpu" and not torch.compiler.is_compiling():  # the C++ form checks by itself
            check_values(logits_MBK, target_B, weights_MM, ignore_index)
        return mimic_loss_eager(logits_MBK, target_B, weights_MM, temperature, label_smoothing, ignore_index)
    need_grad = torch.is_grad_enabled() and logits_MBK.requires_grad
    loss, terms_MM, _ = _fused_mimic_loss.mimic_loss(
        logits_MBK, target_B, weights_MM, temperature, label_smoothing, ignore_index, need_grad
    )
    return loss, terms_MM


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
        _validate_settings(temperature, label_smoothing, ignore_index)
        _validate_weights(weights_MM)
        if weights_MM.device.type == "cpu":
            _check_weights(weights_MM)
        self.weights_MM: Tensor
        self.register_buffer("weights_MM", weights_MM.detach().clone())  # a copy: the caller's tensor may change
        self.settings: dict[str, Any] = {
            "temperature": temperature, "label_smoothing": label_smoothing, "ignore_index": ignore_index, "impl": impl
        }  # fmt: skip

    def forward(self, logits_MBK: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
        """``(loss, terms_MM)``."""
        return mimic_loss(logits_MBK, target_B, self.weights_MM, **self.settings)

    def extra_repr(self) -> str:
        """The settings, for ``print``."""
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())


def check_values(logits_MBK: Tensor, target_B: Tensor, weights_MM: Tensor, ignore_index: int = -100) -> None:
    """Read the targets and weights and refuse wrong values. It waits for the device: do not call it in every step.

    Raises:
        ValueError: a target that is neither in [0, K) nor ``ignore_index``; a weight that is negative or not finite.
    """
    K = logits_MBK.shape[2]
    wrong_B = (target_B != ignore_index) & ((target_B < 0) | (target_B >= K))
    if wrong_B.any():
        raise UserError(
            f"target_B holds {int(target_B[wrong_B][0])}: needs a class in [0, {K}), or ignore_index ({ignore_index})"
        )
    _check_weights(weights_MM)


def _check_weights(weights_MM: Tensor) -> None:
    bad_MM = ~((weights_MM >= 0) & weights_MM.isfinite())  # written so that NaN is bad too
    if bad_MM.any():
        p, q = bad_MM.nonzero()[0].tolist()
        raise UserError(f"weights_MM[{p}, {q}] is {float(weights_MM[p, q])}: needs a finite number, 0 or more")


def use_fused(impl: str, device: str) -> bool:
    """Whether to use the fused op on that type of device; ``ValueError`` if ``impl`` names one that cannot run."""
    if impl == "eager":
        return False
    if impl == "auto":
        forms = [name for name, where in DEVICES.items() if where == device]
        return any(_fused_mimic_loss.why_not(name) is None for name in forms)
    if device != DEVICES[impl]:
        raise UserError(f"impl is {impl!r}: it runs on {DEVICES[impl]}, and the logits are on {device}, use 'auto'")
    reason = _fused_mimic_loss.why_not(impl)
    if reason is not None:
        raise UserError(f"impl is {impl!r}: it is not available here, as {reason}")
    return True


def _validate(logits_MBK: Tensor, target_B: Tensor, weights_MM: Tensor) -> None:
    if not isinstance(logits_MBK, Tensor):
        raise UserError(
            f"logits_MBK is a {type(logits_MBK).__name__}: must be a tensor [branches, batch, classes], such as "
            "torch.stack of the branches' logits"
        )
    if logits_MBK.ndim != 3 or 0 in (logits_MBK.shape[0], logits_MBK.shape[2]):
        raise UserError(
            f"logits_MBK has shape {tuple(logits_MBK.shape)}: must be [branches, batch, classes] with at least one "
            "branch and one class"
        )
    M, B, _ = logits_MBK.shape
    if logits_MBK.dtype not in FLOAT_DTYPES:
        raise UserError(f"logits_MBK is {logits_MBK.dtype}: must be one of {', '.join(map(str, FLOAT_DTYPES))}")
    if not isinstance(target_B, Tensor) or target_B.shape != (B,) or target_B.dtype != torch.int64:
        raise UserError(
            f"target_B is {_describe(target_B)}: must be an int64 tensor ({B},), a class for each row of the logits; "
            "target.long() converts whole numbers"
        )
    _validate_weights(weights_MM, M)
    for name, tensor in {"target_B": target_B, "weights_MM": weights_MM}.items():
        if tensor.device != logits_MBK.device:
            raise UserError(
                f"{name} is on {tensor.device} and the logits on {logits_MBK.device}: must be on one device"
            )


def _validate_weights(weights_MM: Tensor, M: int | None = None) -> None:
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


def _validate_settings(temperature: float, label_smoothing: float, ignore_index: int) -> None:
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
