"""``fastdhm bench linear``: heads and mimicking loss as one op, against ways that hold all logits, and its limit.

Legend: M branches, B batch, K classes, D features of every branch. The peers are those of ``linear_peers``.
"""

from collections.abc import Sequence

from fastdhm.benchmarks import linear_step
from fastdhm.benchmarks.harness import report
from fastdhm.benchmarks.harness.frame import Frame, check_counts, check_value, missing_compiler
from fastdhm.benchmarks.harness.timing import Comparison, Spread
from fastdhm.benchmarks.reference.linear_peers import PRODUCTS, Case
from fastdhm.benchmarks.reference.loss_peers import Shape, label, parse_shape
from fastdhm.engine.device import keep_freed_memory
from fastdhm.ops import _extension

GRID = ((1, 256, 1000), (3, 256, 1000), (1, 256, 10_000), (3, 256, 10_000), (1, 256, 100_000), (3, 256, 100_000))
# On a GPU the rows fill it, and its memory holds more classes.
GPU_GRID = (*((M, 1024, K) for K in (1000, 10_000, 100_000) for M in (1, 3)), (1, 1024, 1_000_000))
QUICK = ((3, 8, 100),)
COMPILED = ((3, 256, 1000), (3, 256, 10_000))  # compiling takes a minute, and its logits much memory
MARKS = {
    "fused over the whole logits": ("fused", "whole"),
    "fused over the products alone": ("fused", "products"),
    "chunks of torch's losses over fused": ("chunked", "fused"),
    "compiled eager twin over fused": ("compiled", "fused"),
    "eager twin over fused": ("eager", "fused"),
}


def bench(
    frame: Frame,
    *,
    shapes: Sequence[str],
    features: int,
    dtype: str,
    compiled: str,
    chunk_mib: float | None,
    step: str | None,
    classes: int,
    batch_size: int | None,
) -> int:
    """Time all of it and measure memory; returns the exit status, 1 if a peer gave a wrong result.

    Args:
        shapes: as ``3x256x1000`` (branches x batch x classes); none for the grid.
        features: D.
        dtype: of the products: float32, or bfloat16 (autocast: heads and their gradients stay float32).
        compiled: whether ``torch.compile`` of the eager twin takes part: on, off, or auto: at ``COMPILED`` in the grid.
        chunk_mib: of the op; None: its default.
        step: a network whose whole step to time instead, with ``classes`` and ``batch_size``.

    Raises:
        ValueError: a value out of range, inputs that do not fit into memory, or a folder that is not writable.
    """
    check_counts(features=features)
    check_value("dtype", dtype, tuple(PRODUCTS))
    if step is not None:
        check_counts(classes=classes, batch_size=batch_size)
        return _bench_step(frame, step, classes, batch_size, dtype)
    missing = missing_compiler(compiled)
    grid: Sequence[Shape] = tuple(map(parse_shape, shapes)) or (
        QUICK if frame.quick else GPU_GRID if frame.device.type == "cuda" else GRID
    )
    to_compile = {"on": grid, "off": (), "auto": () if missing or shapes else COMPILED}[compiled]
    if frame.device.type == "cpu":
        _extension.require("bench linear")
        keep_freed_memory()  # as in training
    with frame.measuring():
        settings = {"dtype": dtype, "features": features, "chunk_mib": chunk_mib, "shapes": [label(s) for s in grid]}
        comparisons: list[Comparison] = []
        marks: list[report.Mark] = []
        for shape in grid:
            case = Case(shape, features, dtype, frame.device, chunk_mib)
            peers, left_out = case.peers(shape in to_compile)
            for name in left_out:
                frame.say(f"{name} is left out at {label(shape)}: its logits do not fit into memory")
            comparison = frame.compare(f"{label(shape)} {dtype}", peers)
            comparisons.append(comparison)
            marks += report.ratio_marks([comparison], MARKS)
            for name, percent in case.memory(comparison).items():
                value = Spread(percent, percent, percent)
                marks.append(report.Mark(name=f"{name}, of the whole's", where=comparison.label, value=value, unit="%"))
            frame.write(comparisons, marks=marks, settings=settings)  # kept if the rest is stopped
    frame.plot_bars(comparisons, f"Heads and mimicking loss, {dtype}")
    return frame.conclude(comparisons, marks=marks, settings=settings)


def _bench_step(frame: Frame, arch: str, classes: int, batch_size: int | None, dtype: str) -> int:
    with frame.measuring():
        comparison = linear_step.compare_steps(frame, arch, classes, batch_size, dtype)
    marks = report.ratio_marks([comparison], {"linear over logits": ("linear", "logits")})
    return frame.conclude([comparison], marks=marks, settings={"step": arch, "classes": classes})
