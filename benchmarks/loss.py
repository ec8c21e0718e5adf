"""``fastdhm bench loss``: the mimicking loss against other implementations, and against the lower limit.

Legend: M branches, B batch, K classes. The peers are those of ``loss_peers``.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from fastdhm.benchmarks.harness import report
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.benchmarks.harness.frame import Frame, check_value, missing_compiler
from fastdhm.benchmarks.harness.timing import Comparison, Peer, Spread
from fastdhm.benchmarks.reference.loss_peers import DTYPES, Case, Shape, check_memory, fits, label, parse_shape
from fastdhm.methods import weight_matrix
from fastdhm.ops.mimic_loss import IMPLS, mimic_loss

GRID = ((3, 128, 100), (3, 256, 1000), (8, 256, 1000), (2, 256, 1000), (3, 256, 21841))
# On a GPU: enough rows to fill it and its cache several times; the last shape is a usual batch.
GPU_GRID = (
    (3, 32768, 1000), (3, 8192, 4096), (3, 2048, 21841), (3, 512, 262144), (3, 262144, 100), (2, 32768, 1000),
    (8, 16384, 1000), (3, 256, 1000),
)  # fmt: skip
QUICK = ((3, 8, 100),)
NARROW = (3, 256, 1000)  # the float32 grid also times this shape in bfloat16
# Compiling takes about a minute on two cores, so only the two shapes of its marks are compiled.
COMPILED = ((3, 256, 1000), (8, 256, 1000))
SWEEP_BRANCHES = (1, 2, 3, 4, 5, 6, 7, 8)
SWEEP_CLASSES = (10, 30, 100, 300, 1000, 3000, 10000, 32768)
SWEEP_PEERS = ("fused", "loops", "softmax", "copy")
CAPTURED = "captured"  # in a label: the peers are CUDA graphs, so their times are without the host's
# mark -> the two peers whose times it divides
MARKS = {
    "loops over fused": ("loops", "fused"),
    "compiled loops over fused": ("compiled", "fused"),
    "fused over softmax": ("fused", "softmax"),
    "fused over copy": ("fused", "copy"),
    "mixed and weighted labels over fused": ("labels", "fused"),
    "forward alone over softmax": ("forward", "softmax"),
}


def bench(frame: Frame, *, shapes: Sequence[str], dtype: str, compiled: str, sweep: bool) -> int:
    """Time all of it; returns the exit status, 1 if a peer gave a wrong result.

    Args:
        shapes: as ``3x256x1000`` (branches x batch x classes); none for the grid that answers the marks.
        dtype: of the logits; the float32 grid adds a comparison with bfloat16.
        compiled: whether ``torch.compile`` takes part: on, off, or auto: in the grid, at ``COMPILED``.
        sweep: also time over the number of branches and of classes, plotted.

    Raises:
        ValueError: a value out of range, a shape that does not fit into memory, or a folder that is not writable.
    """
    on_gpu = frame.device.type == "cuda"
    usual = tuple(shape for shape in GPU_GRID if fits(shape, frame.device)) if on_gpu else GRID
    grid = tuple(map(parse_shape, shapes)) or (QUICK if frame.quick else usual)
    check_value("dtype", dtype, tuple(DTYPES))
    to_compile, note = which_to_compile(compiled, grid)
    for shape in grid:
        check_memory(shape, frame.device)
    with frame.measuring():
        fused_is = named_auto(DTYPES[dtype], frame.device)
        frame.say(f"fused is mimic_loss with impl={fused_is!r}; compiled loops are {note}")
        shown = [label(shape) for shape in grid]
        settings = {"dtype": dtype, "shapes": shown, "fused_impl": fused_is, "compiled": note, "sweep": sweep}
        comparisons = []
        for shape in grid:
            comparisons += _compare(frame, shape, dtype, compiled=shape in to_compile)
            frame.write(comparisons, marks=_all_marks(comparisons), settings=settings)  # kept if the rest is stopped
        if grid is GRID and dtype == "float32":
            comparisons += _compare(frame, NARROW, "bfloat16")
        marks = _all_marks(comparisons)
        frame.plot_bars(comparisons, "Mimicking loss")
        if not shapes and not on_gpu:
            B, K = grid[0][1:] if frame.quick else (256, 1000)
            for more, mark in _pairs(frame, B, K, dtype):
                comparisons.append(more)
                marks += mark
        if sweep:
            comparisons += _sweep(frame, dtype)
    return frame.conclude(comparisons, marks=marks, settings=settings)


def named_auto(dtype: torch.dtype, device: torch.device) -> str:
    """The impl that ``auto`` uses for logits of this dtype on this device."""
    logits_MBK = torch.randn(2, 4, 16, device=device, dtype=dtype, requires_grad=True)
    target_B = torch.zeros(4, dtype=torch.int64, device=device)
    weights_MM = weight_matrix("dhm", 2).to(device)

    def run(impl: str) -> None:
        torch.autograd.grad(mimic_loss(logits_MBK, target_B, weights_MM, impl=impl)[0], logits_MBK)

    return harness.name_auto(run, IMPLS)


def which_to_compile(compiled: str, grid: Sequence[Shape]) -> tuple[Sequence[Shape], str]:
    """The shapes at which ``torch.compile`` is timed, and a note that says so."""
    missing = missing_compiler(compiled)
    shapes = {"auto": COMPILED if grid is GRID else (), "on": grid, "off": ()}[compiled]
    if shapes and missing:
        return (), f"left out: {missing}"
    if not shapes:
        return (), "left out (--compiled on to have them)"
    return shapes, f"timed at {', '.join(map(label, shapes))}, compiling takes a minute"


def _compare(
    frame: Frame, shape: Shape, dtype: str, *, compiled: bool = False, only: Sequence[str] | None = None
) -> list[Comparison]:
    """Time one shape with all peers, or ``only`` these; on a GPU called one by one, and then captured."""
    peers = [peer for peer in Case(shape, dtype, frame.device).peers(compiled) if only is None or peer.name in only]
    comparisons = [frame.compare(f"{label(shape)} {dtype}", peers)]
    if frame.device.type == "cuda":
        graphs = [harness.captured(peer) for peer in peers]
        comparisons.append(frame.compare(f"{label(shape)} {dtype} {CAPTURED}", graphs, memory=False))
    return comparisons


def _all_marks(comparisons: Sequence[Comparison]) -> list[report.Mark]:
    return [mark for comparison in comparisons for mark in _marks(comparison)]


def _marks(comparison: Comparison) -> list[report.Mark]:
    """The marks of one shape; a mark whose peers have no time is left out."""
    marks = report.ratio_marks([comparison], MARKS)
    time_ms = comparison.time_ms("fused")
    if time_ms:
        shape, dtype, *how = comparison.label.split()
        M, B, K = parse_shape(shape)
        stack_bytes = M * B * K * DTYPES[dtype].itemsize
        if how:
            written = 4 if dtype == "float16" else DTYPES[dtype].itemsize  # of a gradient
            moved = {"fused": M * B * K * (DTYPES[dtype].itemsize + written), "copy": 2 * stack_bytes}
            for name, ms in ((name, comparison.time_ms(name)) for name in moved):
                if ms:
                    rate = Spread(*(moved[name] / 1e6 / value for value in (ms.median, ms.high, ms.low)))
                    marks.append(report.Mark(name=f"{name} moves", where=comparison.label, value=rate, unit="GB/s"))
            return marks
        peak_bytes = comparison.results["fused"].peak_bytes
        assert peak_bytes is not None  # measured with the time
        extra = 100 * (peak_bytes - stack_bytes) / (2 * stack_bytes)
        name, value = "memory beyond logits and gradient", Spread(extra, extra, extra)
        marks.append(report.Mark(name=name, where=comparison.label, value=value, unit="%"))
    return marks


def _pairs(frame: Frame, B: int, K: int, dtype: str) -> Iterator[tuple[Comparison, list[report.Mark]]]:
    """The fused op on two kinds of input in turns, so that their ratio is reliable; each with its mark."""
    pairs = {"growth from M = 2 to M = 8": [((8, B, K), dtype), ((2, B, K), dtype)]}
    if dtype == "float32":
        pairs["bfloat16 over float32"] = [((3, B, K), "bfloat16"), ((3, B, K), "float32")]
    for question, kinds in pairs.items():
        peers = []
        for shape, kind in kinds:
            case = Case(shape, kind, frame.device)
            check = harness.agrees_with(case.expected)
            peers.append(Peer(name=f"{label(shape)} {kind}", run=partial(case.mimic, "auto"), check=check))
        comparison = frame.compare(f"fused: {question}, batch {B}, {K} classes", peers)
        ratio = comparison.ratio(*comparison.results)
        yield comparison, [report.Mark(name=question, where=f"batch {B}, {K} classes", value=ratio)] if ratio else []


def _sweep(frame: Frame, dtype: str) -> list[Comparison]:
    """Time over branches and over classes; writes a plot of each."""
    M, B, K = QUICK[0] if frame.quick else (3, 256, 1000)
    last = 3 if frame.quick else None
    branches = {m: _compare(frame, (m, B, K), dtype, only=SWEEP_PEERS)[-1] for m in SWEEP_BRANCHES[:last]}
    classes = {k: _compare(frame, (M, B, k), dtype, only=SWEEP_PEERS)[-1] for k in SWEEP_CLASSES[:last]}
    title = f"Mimicking loss, {dtype}, {frame.where}"
    report.plot_lines(frame.out / "loss_branches.png", branches, title, f"branches, at batch {B} and {K} classes")
    report.plot_lines(frame.out / "loss_classes.png", classes, title, f"classes, at {M} branches and batch {B}")
    return [*branches.values(), *classes.values()]
