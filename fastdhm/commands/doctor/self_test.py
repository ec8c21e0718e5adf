"""Checks every compiled op against its float64 reference in a few seconds: value and gradient, in each available form.

Legend: M branches, B batch, K classes or channels out, C channels in, H height, W width, Q queries, G gallery.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdhm.ops import _extension, _fused_mimic_loss
from fastdhm.ops.batch_norm_act import batch_norm_act
from fastdhm.ops.branch_mask import branch_mask
from fastdhm.ops.conv2d import conv2d
from fastdhm.ops.conv3x3 import conv3x3
from fastdhm.ops.match_ranks import match_ranks, match_ranks_eager
from fastdhm.ops.mimic_loss import mimic_loss
from fastdhm.ops.shortcut import shortcut

# The largest error against the float64 reference, relative to its largest number. float32 rounds a number by 6e-8,
# bfloat16 by 4e-3, and these sums have some hundred terms; a larger error is a bug, not rounding.
MOST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.05}
EXACT = ("branch_mask", "match_ranks")  # their results are not sums: one type is enough


@dataclass(frozen=True)
class Check:
    """An op in one form and type: its error against the reference, or why it failed."""

    op: str
    form: str
    dtype: torch.dtype
    error: float = 0.0
    milliseconds: float = 0.0
    failure: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the op gave the right result."""
        return self.failure is None and self.error <= MOST_ERROR[self.dtype]


def self_test(device: torch.device) -> list[Check]:
    """Check value and gradient of every op that this machine can run on ``device``, on small random inputs."""
    forms = {"cpu": "cpp", "cuda": "cuda"}
    checks = []
    for op, values in VALUES.items():
        form = "triton" if (op, device.type) == ("mimic_loss", "cuda") else forms[device.type]
        dtypes = [torch.float32] if op in EXACT else list(MOST_ERROR)
        if _can_run(op, form):
            checks += [_check(op, form, dtype, values, device) for dtype in dtypes]
    return checks


def _can_run(op: str, form: str) -> bool:
    if form == "triton":
        return _fused_mimic_loss.why_not("triton") is None
    if not _extension.available():
        return False
    return form == "cpp" or (op == "branch_mask" and _extension.require(op).build_info()["cuda"])


def _check(op: str, form: str, dtype: torch.dtype, values: Callable[..., list[Tensor]], device: torch.device) -> Check:
    try:
        values(device, dtype, form)  # the first call loads, and compiles a Triton kernel
        started = time.perf_counter()
        got = [value.double().cpu() for value in values(device, dtype, form)]
        milliseconds = 1000 * (time.perf_counter() - started)
        exact = [value.double() for value in values(torch.device("cpu"), torch.float64, "eager")]
    except Exception as error:  # the report shows any error
        return Check(op, form, dtype, failure=f"{type(error).__name__}: {error}")
    errors = [
        float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))
        for one, other in zip(got, exact, strict=True)
    ]
    worst = float("inf") if any(map(math.isnan, errors)) else max(errors)
    return Check(op, form, dtype, worst, milliseconds)


def _own(dtype: torch.dtype) -> torch.dtype:
    """The type of weights beside activations of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise that every type represents exactly: after rounding, a relu's mask could differ between types."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).bfloat16().double()


def _with_gradients(run: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The result of ``run`` and the gradients of its inputs, under a gradient of noise."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    result = run(*leaves)
    grad = _noise(*result.shape, seed=9).to(result)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad)]


def _mimic_loss(device: torch.device, dtype: torch.dtype, impl: str) -> list[Tensor]:
    logits_MBK = (3 * _noise(3, 64, 101)).to(device, dtype).requires_grad_()
    target_B = (torch.arange(64) % 101).to(device)
    weights_MM = torch.tensor([[1.0, 0.5, 1], [1, 1, 0], [0.3, 1, 1]], dtype=torch.float64).to(device, _own(dtype))
    loss, terms_MM = mimic_loss(logits_MBK, target_B, weights_MM, temperature=2.0, label_smoothing=0.1, impl=impl)
    (grad_MBK,) = torch.autograd.grad(loss, logits_MBK)
    return [loss.detach(), terms_MM, grad_MBK]


def _branch_mask(device: torch.device, dtype: torch.dtype, impl: str) -> list[Tensor]:
    # float32 on both sides: the last bit of a probability decides
    probs_S = torch.linspace(0, 1, 64, device=device)
    return [torch.stack([branch_mask(probs_S, seed=7, step=step, impl=impl) for step in range(16)]).to(dtype)]


def _batch_norm_act(device: torch.device, dtype: torch.dtype, impl: str) -> list[Tensor]:
    x, residual = (_noise(8, 19, 9, 7, seed=seed).to(device, dtype) for seed in (0, 1))
    weight, bias = (_noise(19, seed=seed).to(device, _own(dtype)) for seed in (2, 3))
    mean, variance = torch.zeros_like(weight), torch.ones_like(weight)

    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return batch_norm_act(x, mean, variance, weight, bias, residual, impl=impl)

    return [*_with_gradients(run, x, weight, bias, residual), mean, variance]


def _conv3x3(device: torch.device, dtype: torch.dtype, impl: str) -> list[Tensor]:
    x, weight = _noise(8, 16, 11, 13).to(device, dtype), _noise(32, 16, 3, 3).to(device, _own(dtype))
    return _with_gradients(lambda x, weight: conv3x3(x, weight, impl=impl), x, weight)


def _conv2d(device: torch.device, dtype: torch.dtype, impl: str) -> list[Tensor]:
    x, weight = _noise(8, 16, 11, 13).to(device, dtype), _noise(32, 16, 3, 3).to(device, _own(dtype))
    return _with_gradients(lambda x, weight: conv2d(x, weight, (2, 2), (1, 1), impl=impl), x, weight)


def _shortcut(device: torch.device, dtype: torch.dtype, impl: str) -> list[Tensor]:
    return _with_gradients(lambda x: shortcut(x, 32, impl=impl), _noise(4, 16, 9, 7).to(device, dtype))


def _match_ranks(device: torch.device, dtype: torch.dtype, impl: str) -> list[Tensor]:
    distances_QG = _noise(20, 300).float()  # all are different, and the same on both sides
    matches = (torch.arange(20).repeat_interleave(3), torch.arange(60) * 5)
    left_out, junk_J = (torch.arange(20), torch.arange(20) * 7 + 1), torch.tensor([2])
    run = match_ranks_eager if impl == "eager" else match_ranks
    rank_P, nearest_QK, _ = run(distances_QG, matches, left_out, junk_J, 10)
    return [rank_P, nearest_QK]


# op -> its results and gradients on a device, in a type, by a form
VALUES: dict[str, Callable[[torch.device, torch.dtype, str], list[Tensor]]] = {
    "mimic_loss": _mimic_loss,
    "branch_mask": _branch_mask,
    "batch_norm_act": _batch_norm_act,
    "conv3x3": _conv3x3,
    "conv2d": _conv2d,
    "shortcut": _shortcut,
    "match_ranks": _match_ranks,
}
