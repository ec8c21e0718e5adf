"""``fastdhm bench conv``: 3x3 convolutions in training on a CPU, against their peers.

Legend: B batch, C channels in, K channels out, H height, W width.

Peers: ``tiles`` (``impl="cpp"``, Winograd's), ``eager`` (torch's convolution, of oneDNN), and ``products``, the limit:
the multiplications that tiles of 4x4 outputs cannot do without, 36 matrix products of [tiles, C] and [C, K] for y and
as many for each gradient, by ``torch.bmm`` on numbers that lie ready. What the op keeps between calls is not in
its memory here.
"""

import torch
from torch import Tensor

from fastdhm.benchmarks import harness, report
from fastdhm.benchmarks.frame import Frame, check_value
from fastdhm.benchmarks.harness import Peer
from fastdhm.engine.device import keep_freed_memory
from fastdhm.errors import UserError
from fastdhm.ops import _extension
from fastdhm.ops.conv3x3 import conv3x3, conv3x3_eager, why_not

Shape = tuple[int, int, int, int, int]
# B, C, K, H, W: the stages of ResNet-32 and its wide branch at batch 128, and those of ResNet-50 at 224 pixels and 32
GRID = (
    (128, 16, 16, 32, 32), (128, 32, 32, 16, 16), (128, 64, 64, 8, 8), (128, 128, 128, 8, 8),
    (32, 64, 64, 56, 56), (32, 128, 128, 28, 28), (32, 256, 256, 14, 14), (32, 512, 512, 7, 7),
)  # fmt: skip
QUICK = ((2, 16, 16, 8, 8),)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
POINTS, SIDE = 36, 4  # of a tile, and its outputs a side
TOLERANCE = 0.03  # bfloat16's tiles lose 1% on average, see conv3x3
MARKS = {"eager over tiles": ("eager", "tiles"), "tiles over the products": ("tiles", "products")}


def bench(frame: Frame, *, dtype: str) -> int:
    """Time all of it; returns the exit status, 1 if a peer gave a wrong result.

    Args:
        dtype: of the activations: bfloat16 or float32.

    Raises:
        ValueError: a value that cannot be, no C++ extension or no vector code for ``dtype`` on this processor, or a
            folder that cannot be written to.
    """
    check_value("dtype", dtype, tuple(DTYPES))
    _extension.require("bench conv")
    reason = why_not(torch.zeros(1, 16, 4, 4, dtype=DTYPES[dtype]), torch.zeros(16, 16, 3, 3))
    if reason is not None:
        raise UserError(f"--dtype is {dtype}: {reason}, take the other")
    keep_freed_memory()  # as training does, or fresh pages take longer than the arithmetic
    with frame.measuring():
        comparisons = [
            frame.compare("x".join(map(str, shape)), peers(shape, DTYPES[dtype]), max_seconds=20)
            for shape in (QUICK if frame.quick else GRID)
        ]
    frame.plot_bars(comparisons, f"3x3 convolutions, forward and backward, {dtype}")
    return frame.conclude(comparisons, marks=report.ratio_marks(comparisons, MARKS), settings={"dtype": dtype})


def peers(shape: Shape, dtype: torch.dtype) -> list[Peer]:
    """The op and what it is held against, on the same numbers, both checked against float64."""
    B, C, K, H, W = shape
    generator = torch.Generator().manual_seed(0)
    last = {"memory_format": torch.channels_last}
    x_BCHW = torch.randn(B, C, H, W, generator=generator).to(dtype, **last)
    weight_KC33 = (torch.randn(K, C, 3, 3, generator=generator) / (3 * C**0.5)).contiguous(**last)
    grad_BKHW = torch.randn(B, K, H, W, generator=generator).to(dtype, **last)
    expected = _rows(_once(conv3x3_eager, x_BCHW.double(), weight_KC33.double(), grad_BKHW.double()), torch.float64)
    agrees = harness.agrees_with(expected, TOLERANCE if dtype == torch.bfloat16 else None)
    rules = {"tiles": lambda x, weight: conv3x3(x, weight, impl="cpp"), "eager": conv3x3_eager}
    found = [
        Peer(
            name=name,
            run=lambda rule=rule: _once(rule, x_BCHW, weight_KC33, grad_BKHW),
            check=lambda results: agrees(_rows(results, dtype)),
        )
        for name, rule in rules.items()
    ]
    tiles = B * -(-H // SIDE) * -(-W // SIDE)
    ready = [torch.randn(POINTS, *size, generator=generator).to(dtype) for size in ((tiles, C), (C, K), (tiles, K))]
    return [*found, Peer(name="products", run=lambda: _products(*ready), check=lambda _: None)]


def _once(rule, x_BCHW: Tensor, weight_KC33: Tensor, grad_BKHW: Tensor) -> dict[str, Tensor]:
    """A pass forward and backward."""
    leaves = x_BCHW.detach().requires_grad_(), weight_KC33.detach().requires_grad_()
    y_BKHW = rule(*leaves)
    grads = torch.autograd.grad(y_BKHW, leaves, grad_BKHW)
    return dict(zip(("y", "grad_x", "grad_weight"), (y_BKHW.detach(), *grads), strict=True))


def _rows(results: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Every result with a row an image or output, in the type whose rounding it bears."""
    return {name: result.flatten(1).to(dtype) for name, result in results.items()}


def _products(input_PTC: Tensor, weight_PCK: Tensor, grad_PTK: Tensor) -> dict[str, Tensor]:
    return {
        "y": torch.bmm(input_PTC, weight_PCK),
        "grad_x": torch.bmm(grad_PTK, weight_PCK.mT),
        "grad_weight": torch.bmm(input_PTC.mT, grad_PTK),
    }
