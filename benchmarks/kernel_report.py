"""Reports what the compiler makes of the Triton kernels, without a GPU.

``python benchmarks/kernel_report.py`` writes docs/kernels.md in about two minutes on one core. Every variant is
compiled for each target as a launch would compile it: the same plan, the same specialisation. Registers and spills are
read with the cuobjdump that triton ships, the widths of loads and stores from the machine code.

Legend: M branches, B batch, K classes.
"""

import argparse
import platform
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import CompiledKernel
from triton.runtime import driver

from fastdhm.kernels import mimic_loss
from fastdhm.kernels.mimic_loss import Launch
from fastdhm.system.console import Console
from fastdhm.system.files import write_text

OUTPUT = Path(__file__).parents[1] / "docs" / "kernels.md"
TARGETS = {80: "A100", 90: "H100, H200", 100: "B200"}
B = 256


class Variant(NamedTuple):
    """What a kernel is compiled for; ``labels``: with mixed labels and row weights."""

    M: int
    K: int
    dtype: torch.dtype
    temperature: float = 1.0
    smoothing: float = 0.0
    need_grad: bool = True
    labels: bool = False


F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
VARIANTS = [
    *(Variant(3, 1000, dtype) for dtype in (F32, BF16, F16)),
    Variant(3, 1000, F32, need_grad=False),
    Variant(3, 1000, BF16, 3.0, 0.1),
    *(Variant(3, 1000, dtype, labels=True) for dtype in (F32, BF16)),
    Variant(3, 1000, BF16, 3.0, 0.1, labels=True),
    *(Variant(3, 100, dtype) for dtype in (F32, BF16)),
    Variant(3, 100, F32, labels=True),
    Variant(1, 1000, F32, smoothing=0.1),
    *(Variant(8, 1000, dtype) for dtype in (F32, BF16)),
    Variant(8, 1000, F32, labels=True),
    *(Variant(3, 21841, dtype) for dtype in (F32, BF16)),
    Variant(3, 21841, F32, 3.0, 0.1),
    Variant(3, 21841, F32, labels=True),
    Variant(16, 1000, BF16),
    Variant(3, 1000, F64),
    Variant(3, 1000, F64, 3.0, 0.1),
]


PAGE = """\
# The Triton kernels as compiled

Written by `python benchmarks/kernel_report.py`, with torch {torch}, triton {triton} and Python {python}.
Compiled ahead of time for {names} ({cards}), by ptxas {ptxas}.

**Nothing here was run on a GPU.** The kernels were run through Triton's interpreter on a CPU, which shows that their
results are right (`tests/kernels`) and nothing about their speed. This page is what the compiler says.

*Registers* and *spilled* (bytes) are per thread, *shared* (bytes) is per program, each for {names}.
*Loads* and *stores* count the global instructions of each width (bytes) in the machine code for the first target. Wide
ones carry logits, gradients and sums. Narrow ones carry labels, weights, and rows whose length is not a multiple of the
wider width. Batch {batch}, contiguous tensors.

## Forward, first launch: `mimic_loss_fwd_kernel`

*Tile* is classes x warps of a program. If it is shorter than K, a row is read twice. *Bytes* are moved per logit; in
brackets the floor: one read and, with a gradient, one write. A second read can come from L2 instead of memory, if the
rows in work fit into it. Up to 4 branches, registers are limited so that 12 warps or more fit on a multiprocessor. So
some variants spill a few bytes, which are read again once per row. Beyond this table, some variants in float64 spill
too.

{rows}

## Forward, second launch: `mimic_loss_sum_kernel`

One program for any batch.

{sums}

## Backward, the only launch: `scale_kernel`

If the incoming gradient is 1, it reads only that number. Otherwise *bytes* are moved per logit.

{scales}
"""


class AheadOfTime:
    """The part of a triton driver that the compiler needs: the target, here without a device."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # kernels are cached by device

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_launch(launch: Launch, capability: int) -> CompiledKernel:
    """The compiled kernel of a launch."""
    driver.set_active(AheadOfTime(capability))
    return launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.options)


def loss_launches(variant: Variant) -> tuple[Launch, Launch]:
    """The launches of the loss for contiguous logits and a batch of B."""
    M, K, dtype, temperature, smoothing, need_grad, labels = variant
    logits_MBK, target_B = torch.empty(M, B, K, dtype=dtype), torch.empty(B, dtype=torch.int64)
    options = (temperature, smoothing, -100, need_grad)
    more = (torch.empty_like(target_B), torch.empty(B), torch.empty(B)) if labels else ()
    first, second = mimic_loss.plan(logits_MBK, target_B, torch.empty(M, M), *options, *more)[0]
    return first, second


def resources(kernel: CompiledKernel) -> dict[str, int]:
    """Registers and stack bytes of a thread and shared bytes of a program, as ptxas allotted them.

    In these kernels only spilled registers need a stack, so its size is the size of the spills.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    spilled = found["STACK"] + found["LOCAL"]
    return {"registers": found["REG"], "spilled": spilled, "shared": kernel.metadata.shared}


def widths(kernel: CompiledKernel, instruction: str) -> str:
    """How many global loads (``LDG``) or stores (``STG``) of each width in bytes the machine code has."""
    count: Counter[int] = Counter()
    for modifiers in re.findall(rf"\b{instruction}((?:\.\w+)*)", kernel.asm["sass"]):
        bits = re.search(r"\.[US]?(8|16|64|128)\b", modifiers)
        count[int(bits[1]) // 8 if bits else 4] += 1
    return ", ".join(f"{count[size]} x {size}" for size in sorted(count, reverse=True))


def compiled_cells(launch: Launch, targets: Sequence[int]) -> list[str]:
    """Registers, spills and shared memory for all targets, widths of loads and stores for the first."""
    kernels = [compile_launch(launch, capability) for capability in targets]
    used = [resources(kernel) for kernel in kernels]
    allotted = [" / ".join(str(usage[name]) for usage in used) for name in ("registers", "spilled", "shared")]
    return [*allotted, widths(kernels[0], "LDG"), widths(kernels[0], "STG")]


def rows_line(variant: Variant, targets: Sequence[int]) -> list[str]:
    """A line of the table of the forward kernel."""
    M, K, dtype, temperature, smoothing, need_grad, labels = variant
    rows, _ = loss_launches(variant)
    BK = rows.arguments[-2]
    settings = [f"T = {temperature:g}"] * (temperature != 1) + [f"smoothing {smoothing:g}"] * (smoothing > 0)
    settings += ["no gradient"] * (not need_grad) + ["mixed, weighted labels"] * labels
    written = need_grad * (4 if dtype == torch.float16 else dtype.itemsize)  # a float16 gradient is kept in float32
    floor = dtype.itemsize + written
    moved = floor if BK >= K else floor + dtype.itemsize
    return [
        *(f"{M} x {K}", name_of(dtype), ", ".join(settings), f"{BK} x {rows.num_warps}"),
        *compiled_cells(rows, targets),
        f"{moved} ({floor})",
    ]


def sum_line(M: int, dtype: torch.dtype, targets: Sequence[int]) -> list[str]:
    """A line of the table of the second kernel."""
    _, total = loss_launches(Variant(M, 1000, dtype))
    return [str(M), name_of(dtype), *compiled_cells(total, targets)]


def scale_line(dtype: torch.dtype, targets: Sequence[int]) -> list[str]:
    """A line of the table of ``scale_``."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    launch = mimic_loss.plan_scale(torch.empty(3, B, 1000, dtype=dtype), torch.empty((), dtype=wide))
    return [name_of(dtype), *compiled_cells(launch, targets), str(2 * dtype.itemsize)]


def name_of(dtype: torch.dtype) -> str:
    """``float32``, as people write it."""
    return str(dtype).removeprefix("torch.")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def report(variants: Sequence[Variant], targets: Sequence[int]) -> str:
    """The whole page."""
    names = " / ".join(f"sm_{capability}" for capability in targets)
    cells = ["registers", "spilled", "shared", "loads", "stores"]
    rows = [rows_line(variant, targets) for variant in variants]
    sums = [sum_line(M, dtype, targets) for M, dtype in ((3, torch.float32), (8, torch.float32), (3, torch.float64))]
    scales = [scale_line(dtype, targets) for dtype in (torch.float32, torch.bfloat16, torch.float64)]
    return PAGE.format(
        torch=torch.__version__, triton=triton.__version__, python=platform.python_version(), batch=B, names=names,
        ptxas=" / ".join(get_ptxas(capability).version for capability in targets),
        cards=", ".join(f"sm_{capability}: {TARGETS[capability]}" for capability in targets),
        rows=table(["M x K", "logits", "", "tile", *cells, "bytes (floor)"], rows),
        sums=table(["M", "logits", *cells], sums),
        scales=table(["gradient", *cells, "bytes"], scales),
    )  # fmt: skip


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the page to write")
    parser.add_argument("--first", action="store_true", help="one variant for one target only, as a quick check")
    arguments = parser.parse_args()
    page = report(VARIANTS[:1], [90]) if arguments.first else report(VARIANTS, list(TARGETS))
    write_text(arguments.output, page)
    Console().print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
