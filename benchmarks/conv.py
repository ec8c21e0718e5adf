"""``fastdhm bench conv``: convolutions in training on a CPU, against their peers.

Legend: B batch, C channels in, K channels out, H height, W width, P pixels of the output.

Peers of 3x3 convolutions, forward and backward: ``tiles`` (``impl="cpp"``, Winograd's), ``eager`` (torch's oneDNN
convolution), and ``products``, the limit: the multiplications that tiles of 4x4 outputs need, 36 matrix products of
[tiles, C] and [C, K] for y and 36 for each gradient, by ``torch.bmm`` on prepared numbers. Memory that the op keeps
between calls is not counted here.

Peers of the weight gradient of the other convolutions: ``pixels`` (``conv2d``'s own), ``eager``, and ``products``: one
matrix product, [K, P] and [P, taps and C], on prepared numbers. Peers of their input gradient, with strides: ``phases``
(``conv2d``'s own, or torch's where ``conv2d`` uses that), ``eager``, and ``products``, [P, K] and [K, taps and C]. Each
call takes other images than the one before, so they are in no cache, as in training.
"""

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastdhm.benchmarks.harness import report
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.benchmarks.harness.frame import Frame, check_value
from fastdhm.benchmarks.harness.timing import Peer
from fastdhm.engine.device import keep_freed_memory
from fastdhm.errors import UserError
from fastdhm.ops import _extension
from fastdhm.ops.conv2d import conv2d_eager
from fastdhm.ops.conv3x3 import conv3x3, conv3x3_eager, why_not

Shape = tuple[int, int, int, int, int]
# B, C, K, H, W: the stages of ResNet-32 and its wide branch at batch 128, and those of ResNet-50 at 224 pixels and 32
GRID = (
    (128, 16, 16, 32, 32), (128, 32, 32, 16, 16), (128, 64, 64, 8, 8), (128, 128, 128, 8, 8),
    (32, 64, 64, 56, 56), (32, 128, 128, 28, 28), (32, 256, 256, 14, 14), (32, 512, 512, 7, 7),
)  # fmt: skip
QUICK = ((2, 16, 16, 8, 8),)
# The same with the kernel's side and the stride: the other convolutions of those networks, a few of each kind
GRADIENTS = (
    (128, 16, 32, 32, 32, 3, 2), (128, 32, 64, 16, 16, 3, 2), (128, 32, 128, 16, 16, 3, 2),
    (32, 64, 256, 56, 56, 1, 1), (32, 512, 128, 28, 28, 1, 1), (32, 1024, 2048, 14, 14, 1, 2),
    (32, 512, 512, 14, 14, 3, 2),
)  # fmt: skip
QUICK_GRADIENTS = ((2, 16, 16, 8, 8, 3, 2),)
COLD_BYTES = 1 << 26  # of images that the calls take in turn: more than the caches hold
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
POINTS, SIDE = 36, 4  # of a tile, and the outputs along its side
TOLERANCE = 0.03  # in bfloat16 the tiles lose 1% on average, see conv3x3
MARKS = {
    "eager over tiles": ("eager", "tiles"),
    "tiles over the products": ("tiles", "products"),
    "eager over pixels": ("eager", "pixels"),
    "pixels over the products": ("pixels", "products"),
    "eager over phases": ("eager", "phases"),
    "phases over the products": ("phases", "products"),
}


def bench(frame: Frame, *, dtype: str) -> int:
    """Time all of it; returns the exit status, 1 if a peer gave a wrong result.

    Args:
        dtype: of the activations: bfloat16 or float32.

    Raises:
        ValueError: a value out of range, no C++ extension or no vector code for ``dtype`` on this processor, or a
            folder that cannot be written to.
    """
    check_value("dtype", dtype, tuple(DTYPES))
    _extension.require("bench conv")
    reason = why_not(torch.zeros(1, 16, 4, 4, dtype=DTYPES[dtype]), torch.zeros(16, 16, 3, 3))
    if reason is not None:
        raise UserError(f"--dtype is {dtype}: {reason}. Use the other one")
    keep_freed_memory()  # as in training; else fresh pages take longer than the arithmetic
    with frame.measuring():
        comparisons = [
            frame.compare("x".join(map(str, shape)), peers(shape, DTYPES[dtype]), max_seconds=20)
            for shape in (QUICK if frame.quick else GRID)
        ]
        for shape in QUICK_GRADIENTS if frame.quick else GRADIENTS:
            for of in ("weights", "input") if min(shape[5:]) > 1 else ("weights",):
                label = f"{'x'.join(map(str, shape[:5]))} {of} {shape[5]}x{shape[5]}/{shape[6]}"
                comparisons.append(frame.compare(label, gradient_peers(shape, DTYPES[dtype], of), max_seconds=20))
    frame.plot_bars(comparisons, f"3x3 convolutions, and the gradients of the others, {dtype}")
    return frame.conclude(comparisons, marks=report.ratio_marks(comparisons, MARKS), settings={"dtype": dtype})


def peers(shape: Shape, dtype: torch.dtype) -> list[Peer]:
    """The op and its peers on the same numbers, all checked against float64."""
    B, C, K, H, W = shape
    generator = torch.Generator().manual_seed(0)
    last = torch.channels_last
    x_BCHW = torch.randn(B, C, H, W, generator=generator).to(dtype, memory_format=last)
    weight_KC33 = (torch.randn(K, C, 3, 3, generator=generator) / (3 * C**0.5)).contiguous(memory_format=last)
    grad_BKHW = torch.randn(B, K, H, W, generator=generator).to(dtype, memory_format=last)
    expected = _rows(_once(conv3x3_eager, x_BCHW.double(), weight_KC33.double(), grad_BKHW.double()), torch.float64)
    agrees = harness.agrees_with(expected, TOLERANCE if dtype == torch.bfloat16 else None)
    rules = {"tiles": lambda x, weight: conv3x3(x, weight, impl="cpp"), "eager": conv3x3_eager}
    found = [
        Peer(
            name=name,
            run=partial(_once, rule, x_BCHW, weight_KC33, grad_BKHW),
            check=lambda results: agrees(_rows(results, dtype)),
        )
        for name, rule in rules.items()
    ]
    tiles = B * -(-H // SIDE) * -(-W // SIDE)
    ready = [torch.randn(POINTS, *size, generator=generator).to(dtype) for size in ((tiles, C), (C, K), (tiles, K))]
    return [*found, Peer(name="products", run=lambda: _products(*ready), check=lambda _: None)]


def gradient_peers(shape: tuple[int, ...], dtype: torch.dtype, of: str) -> list[Peer]:
    """The weight or input gradient of any convolution, and its peers."""
    B, C, K, H, W, side, step = shape
    generator = torch.Generator().manual_seed(0)
    last = torch.channels_last
    x_BCHW = torch.randn(B, C, H, W, generator=generator).to(dtype, memory_format=last)
    weight_KCRS = torch.randn(K, C, side, side, generator=generator) / (side * C**0.5)
    weight_KCRS = weight_KCRS.to(dtype, memory_format=last)
    stride, padding = (step, step), (side // 2, side // 2)
    grad_BKHW = torch.randn(conv2d_eager(x_BCHW, weight_KCRS, stride, padding).shape, generator=generator)
    given = grad_BKHW.to(dtype, memory_format=last), x_BCHW
    copies = 1 + COLD_BYTES // sum(tensor.nbytes for tensor in given)
    turns = itertools.cycle([tuple(tensor.clone() for tensor in given) for _ in range(copies)])

    def eager(grad, x):
        how = (None, stride, padding, (1, 1), False, (0, 0), 1, [of == "input", of == "weights", False])
        return torch.ops.aten.convolution_backward(grad, x, weight_KCRS.to(x.dtype), *how)[of == "weights"]

    def pixels(grad, x):
        return torch.ops.fastdhm.conv_weight_grad(grad, x, (side, side), stride, padding)

    def phases(grad, x):
        return torch.ops.fastdhm.conv2d_input_grad(grad, x, weight_KCRS, stride, padding)

    def gradient(rule: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
        return {of: rule(*next(turns))}

    agrees = harness.agrees_with(_rows({of: eager(*(tensor.double() for tensor in given))}, torch.float64))
    found = [
        Peer(
            name=rule.__name__,
            run=partial(gradient, rule),
            check=lambda results: agrees(_rows(results, dtype)),
        )
        for rule in (pixels if of == "weights" else phases, eager)
    ]
    P = grad_BKHW.numel() // K
    rows, inner = (K, P) if of == "weights" else (P, K)
    sizes = (rows, inner), (inner, side * side * C)
    ready = [torch.randn(*size, generator=generator).to(dtype) for size in sizes]
    return [*found, Peer(name="products", run=lambda: {of: ready[0] @ ready[1]}, check=lambda _: None)]


def _once(rule, x_BCHW: Tensor, weight_KC33: Tensor, grad_BKHW: Tensor) -> dict[str, Tensor]:
    """A pass forward and backward."""
    leaves = x_BCHW.detach().requires_grad_(), weight_KC33.detach().requires_grad_()
    y_BKHW = rule(*leaves)
    grads = torch.autograd.grad(y_BKHW, leaves, grad_BKHW)
    return dict(zip(("y", "grad_x", "grad_weight"), (y_BKHW.detach(), *grads), strict=True))


def _rows(results: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Every result with a row per image or output, in the type that rounded it."""
    return {name: result.flatten(1).to(dtype) for name, result in results.items()}


def _products(input_PTC: Tensor, weight_PCK: Tensor, grad_PTK: Tensor) -> dict[str, Tensor]:
    return {
        "y": torch.bmm(input_PTC, weight_PCK),
        "grad_x": torch.bmm(grad_PTK, weight_PCK.mT),
        "grad_weight": torch.bmm(input_PTC.mT, grad_PTK),
    }
