"""Implementations of the mimicking loss, and the expected results.

Legend: M branches, B batch, K classes.

Peers, forward and backward to the gradient of the logits unless said otherwise:

- ``fused``     ``mimic_loss(impl="auto")`` on the stack ``[M, B, K]``, as a branched model returns it;
- ``labels``    the same with mixed labels and row weights;
- ``forward``   ``fused`` without gradient, as in evaluation;
- ``loops``     a softmax, a log_softmax and a kl_div for each ordered pair, a cross_entropy for each branch, float32,
                on M separate tensors, which spares it the copies that indexing a stack would cost it;
- ``compiled``  ``torch.compile`` of ``loops``;
- ``eager``     ``mimic_loss(impl="eager")``;
- ``softmax``   ``torch.softmax`` of the stack: one exponential, one read and one write for each logit, forward only;
- ``copy``      a copy of the stack: the read and the write alone.
"""

import re
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdhm.benchmarks.harness import machine
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.benchmarks.harness.timing import Peer
from fastdhm.errors import UserError
from fastdhm.methods import weight_matrix
from fastdhm.ops.mimic_loss import FLOAT_DTYPES, mimic_loss

Shape = tuple[int, int, int]

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES}
ORACLE_ROWS = 32  # of a cache
ORACLE_SUMMANDS = 1 << 25  # of a GPU, which a few rows would not fill


class Case:
    """Inputs of one shape and dtype, the expected results, and the peers that compute them."""

    def __init__(self, shape: Shape, dtype: str, device: torch.device):
        check_memory(shape, device)
        M, B, K = shape
        generator = torch.Generator(device).manual_seed(0)
        logits_MBK = 3 * torch.randn(shape, generator=generator, device=device)
        self.target_B = torch.randint(K, (B,), generator=generator, device=device)
        self.weights_MM = weight_matrix("dhm", M).to(device)
        self.logits_MBK = logits_MBK.to(DTYPES[dtype]).requires_grad_()
        target2_B = self.target_B.roll(1)
        share_B, row_weight_B = torch.rand(2, B, generator=generator, device=device)
        self.labels = {"mix": (target2_B, share_B), "row_weight_B": row_weight_B}
        self.expected = oracle(self.logits_MBK.detach(), self.target_B, self.weights_MM)
        self.expected_labels = oracle_of_labels(self.expected, self.logits_MBK.detach(), self.target_B, **self.labels)

    def peers(self, compiled: bool) -> list[Peer]:
        """Every peer, the fused op first."""
        alone = [logits_BK.detach().clone().requires_grad_() for logits_BK in self.logits_MBK]
        runs = {
            "fused": lambda: self.mimic("auto"),
            "labels": lambda: self.mimic("auto", **self.labels),
            "forward": self.evaluate,
            "loops": lambda: self.separately(loops, alone),
        }
        if compiled:
            torch.compiler.reset()  # compile for every shape anew, as training would
            compiled_loops = torch.compile(loops, dynamic=False)
            runs["compiled"] = lambda: self.separately(compiled_loops, alone)
        runs |= {
            "eager": lambda: self.mimic("eager"),
            "softmax": lambda: {"probabilities": self.logits_MBK.detach().softmax(-1)},
            "copy": lambda: {"copy": self.logits_MBK.detach().clone()},
        }
        checks = {name: harness.agrees_with(self.expected) for name in runs}
        checks["labels"] = harness.agrees_with(self.expected_labels)
        return [Peer(name=name, run=run, check=checks[name]) for name, run in runs.items()]

    def mimic(self, impl: str, **labels) -> dict[str, Tensor]:
        """Loss, terms and gradient by the op."""
        loss, terms_MM = mimic_loss(self.logits_MBK, self.target_B, self.weights_MM, impl=impl, **labels)
        (gradient_MBK,) = torch.autograd.grad(loss, self.logits_MBK)
        return {"loss": loss, "terms": terms_MM, "gradient": gradient_MBK}

    @torch.no_grad()
    def evaluate(self) -> dict[str, Tensor]:
        """Loss and terms by the op, without gradient."""
        loss, terms_MM = mimic_loss(self.logits_MBK, self.target_B, self.weights_MM)
        return {"loss": loss, "terms": terms_MM}

    def separately(self, function, alone: list[Tensor]) -> dict[str, Tensor]:
        """Loss and gradient by a function of separate branches."""
        loss = function(alone, self.target_B)
        gradients = torch.autograd.grad(loss, alone)
        return {"loss": loss} | {f"gradient of B{m}": gradient_BK for m, gradient_BK in enumerate(gradients)}


def loops(branches: list[Tensor], target_B: Tensor) -> Tensor:
    """The loss written as loops: every cross-entropy, then every ordered pair, all weights 1."""
    branches = [logits_BK.float() if logits_BK.dtype != torch.float64 else logits_BK for logits_BK in branches]
    loss = reduce(torch.add, (F.cross_entropy(logits_BK, target_B) for logits_BK in branches))
    for p, teacher_BK in enumerate(branches):
        for q, student_BK in enumerate(branches):
            if p != q:
                teacher_probs_BK = F.softmax(teacher_BK, -1).detach()
                loss = loss + F.kl_div(F.log_softmax(student_BK, -1), teacher_probs_BK, reduction="batchmean")
    return loss


def oracle(logits_MBK: Tensor, target_B: Tensor, weights_MM: Tensor) -> dict[str, Tensor]:
    """The expected results, by the eager reference in float64, some rows at a time: it holds [M, M, rows, K]."""
    M, B, K = logits_MBK.shape
    loss = torch.zeros((), dtype=torch.float64, device=logits_MBK.device)
    terms_MM, gradients = torch.zeros(M, M, dtype=torch.float64, device=logits_MBK.device), []
    at_once = ORACLE_ROWS if logits_MBK.device.type == "cpu" else max(1, ORACLE_SUMMANDS // (M * M * K))
    for rows in range(0, B, at_once):
        part_MBK = logits_MBK[:, rows : rows + at_once].double().requires_grad_()
        part_B = target_B[rows : rows + at_once]
        part_loss, part_MM = mimic_loss(part_MBK, part_B, weights_MM.double(), impl="eager")
        share = len(part_B) / B  # turns means over the part into means over all
        gradients.append(share * torch.autograd.grad(part_loss, part_MBK)[0])
        loss = loss + share * part_loss.detach()
        terms_MM += share * part_MM
    gradient_MBK = torch.cat(gradients, 1)
    each = {f"gradient of B{m}": gradient_BK for m, gradient_BK in enumerate(gradient_MBK)}
    probs_MBK = logits_MBK.double().softmax(-1)
    whole = {"loss": loss, "terms": terms_MM, "gradient": gradient_MBK, "probabilities": probs_MBK, "copy": logits_MBK}
    return whole | each


def oracle_of_labels(
    plain: dict[str, Tensor], logits_MBK: Tensor, target_B: Tensor, mix: tuple[Tensor, Tensor], row_weight_B: Tensor
) -> dict[str, Tensor]:
    """The expected results with other labels: those of ``oracle``, the cross-entropies replaced, in float64."""
    terms_MM, gradient_MBK = plain["terms"].clone(), plain["gradient"].clone()
    other_B, share_B = mix
    share_B, weight_B = share_B.double()[:, None], row_weight_B.double() / row_weight_B.double().sum()
    K = logits_MBK.shape[2]
    old_BK = F.one_hot(target_B, K).double()
    new_BK = share_B * old_BK + (1 - share_B) * F.one_hot(other_B, K)
    for m, logits_BK in enumerate(logits_MBK):
        log_prob_BK = logits_BK.double().log_softmax(-1)
        prob_BK = log_prob_BK.exp()
        terms_MM[m, m] = -(weight_B[:, None] * new_BK * log_prob_BK).sum()
        gradient_MBK[m] += weight_B[:, None] * (prob_BK - new_BK) - (prob_BK - old_BK) / len(target_B)
    return {"loss": terms_MM.sum(), "terms": terms_MM, "gradient": gradient_MBK}


def parse_shape(text: str) -> Shape:
    """``3x256x1000`` as three whole numbers: branches, batch, classes."""
    if not re.fullmatch(r"\d+x\d+x\d+", text, re.ASCII):
        raise UserError(f"--shape is {text!r}: must be branches x batch x classes, such as 3x256x1000")
    M, B, K = (int(part) for part in text.split("x"))
    if 0 in (M, B, K):
        raise UserError(f"--shape is {text!r}: branches, batch and classes must each be at least 1")
    return M, B, K


def label(shape: Shape) -> str:
    """A shape as :func:`parse_shape` reads it."""
    return "x".join(map(str, shape))


def fits(shape: Shape, device: torch.device) -> bool:
    """Whether all peers fit into memory at this shape."""
    try:
        check_memory(shape, device)
    except UserError:
        return False
    return True


def check_memory(shape: Shape, device: torch.device) -> None:
    """``ValueError`` if the eager reference does not fit: it needs six float32 ``[M, M, B, K]`` and a few stacks."""
    M, B, K = shape
    needed = 24 * M * M * B * K + 60 * M * B * K
    if device.type == "cuda":
        needed *= 2  # a CUDA graph has its own memory
    available = machine.free_bytes(device)
    if available is not None and needed > available:
        raise UserError(
            f"--shape is {label(shape)}: its peers need about {needed / 2**30:.1f} GiB, "
            f"{available / 2**30:.1f} GiB are free. Give a smaller shape"
        )
