"""``fastdhm bench norm``: batch norm, residual and relu in training on a CPU, against their peers.

Legend: B batch, C channels, H height, W width.

Peers: ``fused`` (``impl="cpp"``), ``eager`` (torch's batch norm, sum and relu one by one), ``compiled`` (torch.compile
of these), and ``copies``, the limit: a copy of one activation for every two necessary reads or writes of an activation.
There are eleven: forward reads x for its mean, then x and the residual, and writes y. Backward reads x, y and the
gradient, writes the residual's gradient, then reads x and that gradient again and writes the gradient of x.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fastdhm.benchmarks.harness import report
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.benchmarks.harness.frame import Frame, check_value, missing_compiler
from fastdhm.benchmarks.harness.timing import Peer
from fastdhm.engine.device import keep_freed_memory
from fastdhm.ops import _extension
from fastdhm.ops.batch_norm_act import batch_norm_act, batch_norm_act_eager

Shape = tuple[int, int, int, int]
# The stages of ResNet-32 and its wide branch at batch 128, and two of ResNet-50 at 224 pixels and batch 32.
GRID = ((128, 16, 32, 32), (128, 32, 16, 16), (128, 64, 8, 8), (128, 128, 8, 8), (32, 256, 56, 56), (32, 2048, 7, 7))
QUICK = ((4, 16, 8, 8),)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOUCHES = 11
MARKS = {
    "eager over fused": ("eager", "fused"),
    "compiled over fused": ("compiled", "fused"),
    "fused over the copies": ("fused", "copies"),
}


def bench(frame: Frame, *, dtype: str, compiled: str) -> int:
    """Time all of it; returns the exit status, 1 if a peer gave a wrong result.

    Args:
        dtype: of the activations: bfloat16 or float32.
        compiled: whether ``torch.compile`` takes part: on, off, or auto: if there is a compiler, not in a quick run.

    Raises:
        ValueError: a value out of range, no C++ extension, or a folder that is not writable.
    """
    check_value("dtype", dtype, tuple(DTYPES))
    missing = missing_compiler(compiled)
    compiling = compiled == "on" or (compiled == "auto" and not frame.quick and not missing)
    _extension.require("bench norm")
    keep_freed_memory()  # as in training; else fresh pages take longer than the arithmetic
    with frame.measuring():
        comparisons = [
            frame.compare("x".join(map(str, shape)), peers(shape, DTYPES[dtype], compiling), max_seconds=20)
            for shape in (QUICK if frame.quick else GRID)
        ]
    frame.plot_bars(comparisons, f"Batch norm, residual and relu, {dtype}")
    marks = report.ratio_marks(comparisons, MARKS)
    return frame.conclude(comparisons, marks=marks, settings={"dtype": dtype, "compiled": compiling})


def peers(shape: Shape, dtype: torch.dtype, compiling: bool) -> list[Peer]:
    """The fused op and its peers on the same numbers, all checked against float64."""
    generator = torch.Generator().manual_seed(0)
    x, residual, grad_y = (
        torch.randn(shape, generator=generator).to(dtype, memory_format=torch.channels_last) for _ in range(3)
    )
    # Few sums are near 0: there, bfloat16 between torch's operations can give them the wrong sign.
    vectors = [torch.rand(shape[1], generator=generator) + 0.5, torch.full(shape[1:2], 2.0)]
    grad_y = grad_y + 1
    expected = _once(
        batch_norm_act_eager, x.double(), residual.double(), grad_y.double(), [v.double() for v in vectors]
    )
    check = harness.agrees_with(expected)
    rules = {
        "fused": lambda x, mean, var, w, b, r, momentum, eps, relu: batch_norm_act(
            x, mean, var, w, b, r, momentum=momentum, eps=eps, relu=relu, impl="cpp"
        ),
        "eager": batch_norm_act_eager,
    }
    if compiling:
        rules["compiled"] = torch.compile(batch_norm_act_eager, dynamic=False)
    found = [
        Peer(name=name, run=partial(_once, rule, x, residual, grad_y, vectors), check=check)
        for name, rule in rules.items()
    ]
    return [*found, Peer(name="copies", run=lambda: _copies(x), check=lambda _: None)]


def _once(rule, x: Tensor, residual: Tensor, grad_y: Tensor, vectors: Sequence[Tensor]) -> dict[str, Tensor]:
    """A forward and backward pass; every result with a row per image, in the type that rounded it."""
    weight, bias = (vector.detach().requires_grad_() for vector in vectors)
    x, residual = x.detach().requires_grad_(), residual.detach().requires_grad_()
    y = rule(x, torch.zeros_like(weight), torch.ones_like(weight), weight, bias, residual, 0.1, 1e-5, True)
    grads = torch.autograd.grad(y, (x, residual, weight, bias), grad_y)
    results = dict(zip(("y", "grad_x", "grad_residual", "grad_weight", "grad_bias"), (y, *grads), strict=True))
    return {name: (r.detach().flatten(1) if r.ndim > 1 else r).to(x.dtype) for name, r in results.items()}


def _copies(x: Tensor) -> dict[str, Tensor]:
    to = torch.empty_like(x)
    for _ in range(TOUCHES // 2):
        to.copy_(x)
    to[: len(x) // 2].copy_(x[: len(x) // 2])  # the remaining half of an odd number
    return {"copy": to}
