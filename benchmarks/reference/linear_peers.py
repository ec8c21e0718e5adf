"""Heads with the mimicking loss in several ways, and the expected results.

Legend: M branches, B batch, K classes, D features of every branch.

Peers, forward and backward to the gradients of features and heads:

- ``fused``     ``linear_mimic_loss``;
- ``whole``     the heads, ``torch.stack`` and ``mimic_loss``: all logits at once;
- ``chunked``   as trainers of language models do it: torch's ``cross_entropy`` and ``kl_div`` of some rows at a time,
                whose gradients are made at once and added up; as many rows as ``fused`` takes;
- ``eager``     the eager twin;
- ``compiled``  ``torch.compile`` of the eager twin;
- ``products``  the three products of each head alone.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdhm.benchmarks.harness import machine
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.benchmarks.harness.timing import Comparison, Peer
from fastdhm.benchmarks.reference.loss_peers import Shape, label, loops
from fastdhm.engine.device import autocast
from fastdhm.errors import UserError
from fastdhm.methods import weight_matrix
from fastdhm.ops._chunked_mimic_loss import ROWS, plan
from fastdhm.ops.linear_mimic_loss import linear_mimic_loss, linear_mimic_loss_eager
from fastdhm.ops.mimic_loss import mimic_loss, mimic_loss_eager

PRODUCTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ORACLE_SUMMANDS = 1 << 24  # of [M, M, rows, K] in float64
CHECKED_CLASSES = 4096  # of a head's gradient, evenly spread
# float32: of each row. bfloat16: of a whole gradient, as rounded logits leave little of a row that is nearly 0.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2**-5}


class Case:
    """Inputs of one shape and dtype, the expected results, and the peers that compute them."""

    def __init__(self, shape: Shape, D: int, dtype: str, device: torch.device, chunk_mib: float | None):
        M, B, K = self.shape = shape
        self.D, self.dtype, self.device, self.chunk_mib = D, dtype, device, chunk_mib
        self._check_memory(4 * 4 * M * K * D, "its heads and gradients")
        generator = torch.Generator(device).manual_seed(0)
        new = partial(torch.randn, generator=generator, device=device)
        self.features = [new(B, D).requires_grad_() for _ in range(M)]
        self.weights = [new(K, D).mul_(3 * D**-0.5).requires_grad_() for _ in range(M)]
        self.target_B = torch.randint(K, (B,), generator=generator, device=device)
        self.weights_MM = weight_matrix("dhm", M).to(device)
        self.plan = plan(shape, PRODUCTS[dtype], 0, chunk_mib, True, device)
        self.rows = self.plan.step if self.plan.by_rows else min(B, ROWS)
        """Of a chunk of ``chunked``."""

    def peers(self, compiled: bool) -> tuple[list[Peer], list[str]]:
        """Every peer that fits into memory, the op first; and the names of the others."""
        M, B, K = self.shape
        logits = 4 * M * B * K
        runs: dict[str, tuple[Callable[[], dict[str, Tensor]], int]] = {
            "fused": (partial(self._all_rows, partial(linear_mimic_loss, chunk_mib=self.chunk_mib)), 0),
            "whole": (partial(self._all_rows, whole), 4 * logits),
            "chunked": (self._chunked, 6 * M * logits * self.rows // max(B, 1)),
            "eager": (partial(self._all_rows, linear_mimic_loss_eager), 6 * M * logits),
            "products": (self._products, 2 * logits // M),
        }
        if compiled:
            torch.compiler.reset()  # compile for every shape anew, as training would
            twin = torch.compile(linear_mimic_loss_eager, dynamic=False)
            runs["compiled"] = (partial(self._all_rows, twin), 6 * M * logits)
        heads = 8 * M * K * self.D  # of gradients, twice
        free = machine.free_bytes(self.device)
        fits = {name: free is None or heads + needed < free for name, (_, needed) in runs.items()}
        check = self._check()
        found = [Peer(name=name, run=run, check=check) for name, (run, _) in runs.items() if fits[name]]
        return found, [name for name, is_fit in fits.items() if not is_fit]

    def memory(self, comparison: Comparison) -> dict[str, float]:
        """Of the op, beyond inputs and gradients, in percent of what ``whole`` takes there; without its chunk too."""
        M, B, K = self.shape
        peaks = [comparison.results[name].peak_bytes for name in ("fused", "whole") if name in comparison.results]
        ours, theirs = ((peak or 0) - 4 * M * self.D * (B + K) for peak in (*peaks, 0, 0)[:2])
        if min(ours, theirs) <= 0:  # left out, or wrong
            return {}
        rows, few = (self.plan.step, self.plan.few) if self.plan.by_rows else (0, 0)
        chunk = PRODUCTS[self.dtype].itemsize * M * (rows + few) * K or ours
        shares = {"memory beyond inputs and gradients": ours, "the same without a chunk": ours - chunk}
        return {name: 100 * value / theirs for name, value in shares.items()}

    def _all_rows(self, function: Callable) -> dict[str, Tensor]:
        with autocast(self.device, PRODUCTS[self.dtype]):
            loss, _ = function(self.features, self.weights, None, self.target_B, self.weights_MM)
        return self._named(loss, torch.autograd.grad(loss, (*self.features, *self.weights)))

    def _chunked(self) -> dict[str, Tensor]:
        B, inputs = self.shape[1], (*self.features, *self.weights)
        loss, sums = torch.zeros((), device=self.device), [torch.zeros_like(x) for x in inputs]
        for start in range(0, B, self.rows):
            rows = slice(start, start + self.rows)
            x = [x_BD.detach()[rows].requires_grad_() for x_BD in self.features]
            with autocast(self.device, PRODUCTS[self.dtype]):
                logits = [F.linear(x_BD, weight_KD) for x_BD, weight_KD in zip(x, self.weights, strict=True)]
            part = loops(logits, self.target_B[rows]) * (len(x[0]) / B)
            grads = torch.autograd.grad(part, (*x, *self.weights))
            for n, (total, grad) in enumerate(zip(sums, grads, strict=True)):
                (total[rows] if n < len(x) else total).add_(grad)
            loss += part.detach()
        return self._named(loss, sums)

    @torch.no_grad()
    def _products(self) -> dict[str, Tensor]:
        with autocast(self.device, PRODUCTS[self.dtype]):
            for x_BD, weight_KD in zip(self.features, self.weights, strict=True):
                logits_BK = x_BD @ weight_KD.T
                _ = logits_BK @ weight_KD, logits_BK.T @ x_BD
        return {}

    def _named(self, loss: Tensor, grads: Sequence[Tensor]) -> dict[str, Tensor]:
        M = self.shape[0]
        names = [f"gradient of {what} {m}" for what in ("features", "head") for m in range(M)]
        return {"loss": loss.detach(), **dict(zip(names, grads, strict=True))}

    def _check(self) -> Callable[[dict[str, Tensor]], str | None]:
        """Holds loss, features' gradients and some rows of the heads' gradients against float64."""
        classes = torch.linspace(0, self.shape[2] - 1, CHECKED_CLASSES, device=self.device).long().unique()

        def compared(result: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: x if self.dtype == "float32" else x.flatten() for name, x in result.items()}

        agrees = harness.agrees_with(compared(self._expected(classes)), TOLERANCES[self.dtype])

        def check(result: dict[str, Tensor]) -> str | None:
            some = {name: x[classes] if "head" in name else x for name, x in result.items()}
            return agrees(compared(some)) if some else None

        return check

    @torch.no_grad()
    def _expected(self, classes: Tensor) -> dict[str, Tensor]:
        """By the eager reference of the loss in float64, some rows at a time and a head's classes some at a time."""
        M, B, K = self.shape
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        x = [x_BD.detach().double() for x_BD in self.features]
        grads_x, grads_w = [torch.zeros_like(x_BD) for x_BD in x], [x_BD.new_zeros(len(classes), self.D) for x_BD in x]
        step = max(1, ORACLE_SUMMANDS // (M * M * K))
        for rows in (slice(start, start + step) for start in range(0, B, step)):
            logits_MBK = torch.stack(
                [
                    torch.cat([x_BD[rows] @ part_KD.double().T for part_KD in weight_KD.split(CHECKED_CLASSES)], 1)
                    for x_BD, weight_KD in zip(x, self.weights, strict=True)
                ]
            ).requires_grad_()
            with torch.enable_grad():
                part, _ = mimic_loss_eager(logits_MBK, self.target_B[rows], self.weights_MM)
                share = logits_MBK.shape[1] / B
                (grad_MBK,) = torch.autograd.grad(share * part, logits_MBK)
            loss += share * part.detach()
            for m, grad_BK in enumerate(grad_MBK):
                parts = zip(grad_BK.split(CHECKED_CLASSES, 1), self.weights[m].split(CHECKED_CLASSES), strict=True)
                grads_x[m][rows] = sum(grad @ part_KD.double() for grad, part_KD in parts)
                grads_w[m] += grad_BK[:, classes].T @ x[m][rows]
        return self._named(loss, (*grads_x, *grads_w))

    def _check_memory(self, needed: int, what: str) -> None:
        free = machine.free_bytes(self.device)
        if free is not None and needed > free:
            raise UserError(
                f"--shape is {label(self.shape)}: {what} need about {needed / 2**30:.1f} GiB, "
                f"{free / 2**30:.1f} GiB are free. Give a smaller shape"
            )


def whole(features: Sequence[Tensor], weights: Sequence[Tensor], bias: None, target_B: Tensor, weights_MM: Tensor):
    """The heads, then the fused loss."""
    logits_MBK = torch.stack([F.linear(x_BD, w_KD) for x_BD, w_KD in zip(features, weights, strict=True)])
    return mimic_loss(logits_MBK, target_B, weights_MM)
