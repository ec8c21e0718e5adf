"""The mimicking loss on a GPU: plans and launches the kernels of mimic_loss_kernels.py.

Legend: M branches, B batch, K classes; P teacher, Q student, both of M. BM: M rounded up to a power of two, BK: classes
of a tile.

Block sizes follow from shapes alone: no autotuning, no host sync, no allocation that depends on a value.

Launches: 2 forward, 1 backward (``scale_``), eager or captured. One forward launch would do if the last program to
finish added the sums. But it only knows that it is the last from a counter that was zero at the start. Clearing the
counter takes a launch too. Leaving it clear for the next call takes memory that outlives the call, one for each stream
and each captured graph, which the CUDA graphs of torch.compile refuse (``slow_path_cudagraph_asserts``).
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastdhm.kernels.mimic_loss_kernels import (
    IN_THREAD,
    mimic_loss_fwd_kernel,
    mimic_loss_sum_kernel,
    scale_kernel,
)

# With more rows than this, each program takes several, so that the second launch adds no more sums than this.
MAX_PROGRAMS = 1024
H100_PROCESSORS = 132  # assumed when kernels are compiled without a GPU


def mimic_loss(
    logits_MBK: Tensor,
    target_B: Tensor,
    weights_MM: Tensor,
    temperature: float,
    label_smoothing: float,
    ignore_index: int,
    need_grad: bool,
    target2_B: Tensor | None = None,
    share_B: Tensor | None = None,
    row_weight_B: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its terms and its gradient (Eq. 1-9 and their closed-form gradient), without validation or autograd.

    Args:
        logits_MBK: float32, bfloat16, float16 or float64, any strides; M and K at least 1.
        target_B: int64, in [0, K) or ``ignore_index``. Only the device sees another value: the loss becomes NaN.
        weights_MM: any floating dtype, any strides. Read on the device, so its values can change without a recompile.
        temperature: T > 0, for the mimicking terms. Each new value compiles a kernel, and so does each new M and K.
        label_smoothing: in [0, 1], for the cross-entropies. Each new value compiles a kernel.
        ignore_index: the target that means "no label".
        need_grad: whether to write the gradient.
        target2_B: the other class of mixed labels, as ``target_B``; given together with ``share_B``.
        share_B: of ``target_B`` in a mixed label, any floating dtype, in [0, 1]; else the loss becomes NaN.
        row_weight_B: of each row's cross-entropy, any floating dtype, finite and 0 or more; else the loss becomes NaN.

    Returns:
        ``(loss [], terms_MM, grad_MBK)``: the first two float32, or float64 for float64 logits. The gradient is
        contiguous, in the logits' dtype (float32 for float16), for an incoming gradient of 1; without
        ``need_grad`` it has shape (0,).
    """
    settings = (temperature, label_smoothing, ignore_index, need_grad)
    launches, results = plan(logits_MBK, target_B, weights_MM, *settings, target2_B, share_B, row_weight_B)
    run(launches, logits_MBK)
    return results


def scale_(grad_MBK: Tensor, factor: Tensor) -> None:
    """Multiply a contiguous gradient in place by a 0-d tensor on its device; if that is 1, nothing else is read."""
    run([plan_scale(grad_MBK, factor)], grad_MBK)


class Launch(NamedTuple):
    """A kernel and everything that its launch, or its compilation ahead of time, needs."""

    kernel: triton.JITFunction
    grid: tuple[int]
    arguments: tuple
    num_warps: int
    registers: int | None = None  # limit per thread, so that 12 warps or more fit on a multiprocessor

    @property
    def options(self) -> dict:
        # fusion is set because its default changes in triton 3.10
        options = {"num_warps": self.num_warps, "enable_fp_fusion": True}
        return options if self.registers is None else options | {"maxnreg": self.registers}


def run(launches: list[Launch], tensor: Tensor) -> None:
    """Launch on the tensor's device, in its current stream."""
    with torch.cuda.device_of(tensor):
        for launch in launches:
            launch.kernel[launch.grid](*launch.arguments, **launch.options)


def plan(
    logits_MBK: Tensor,
    target_B: Tensor,
    weights_MM: Tensor,
    temperature: float,
    label_smoothing: float,
    ignore_index: int,
    need_grad: bool,
    target2_B: Tensor | None = None,
    share_B: Tensor | None = None,
    row_weight_B: Tensor | None = None,
) -> tuple[list[Launch], tuple[Tensor, Tensor, Tensor]]:
    """The launches, and the tensors that they fill: (loss, terms_MM, grad_MBK)."""
    M, B, K = logits_MBK.shape
    wide = torch.float64 if logits_MBK.dtype == torch.float64 else torch.float32
    align = row_alignment(logits_MBK)
    BM, BK, num_warps = tile(M, K, wide, temperature, align)
    if BM <= IN_THREAD:
        align = min(align, max(1, BK // (32 * num_warps)))  # wider loads would divide branches among threads
    registers = (168 if num_warps <= 4 else 128) if BM <= IN_THREAD // 2 and wide == torch.float32 else None
    programs = min(B, MAX_PROGRAMS, resident(logits_MBK.device, num_warps, registers or 256))
    sums_NPQ = logits_MBK.new_empty((programs, BM, BM), dtype=wide)
    loss, terms_MM = logits_MBK.new_empty((), dtype=wide), logits_MBK.new_empty((M, M), dtype=wide)
    # float16 is too narrow for a gradient before loss scaling
    grad_dtype = torch.float32 if logits_MBK.dtype == torch.float16 else logits_MBK.dtype
    grad_MBK = logits_MBK.new_empty((M, B, K) if need_grad else (0,), dtype=grad_dtype)
    stride_m, stride_b, stride_k = logits_MBK.stride()
    labels: tuple[Tensor | int | None, ...] = (target_B, target_B.stride(0), ignore_index)
    for more_B in (target2_B, share_B, row_weight_B):  # to a kernel None is a constant: its code is left out
        labels += (more_B, 1 if more_B is None else more_B.stride(0))
    weights = (weights_MM, *weights_MM.stride())
    strides = (stride_m // align, stride_b // align, stride_k)
    lanes = min(32 * num_warps, BK // align)  # the threads that share a row
    settings = (float(temperature), float(label_smoothing), align, need_grad, M, K, BM, BK, lanes)
    stride_g = K // align if K % align == 0 else K
    arguments = (logits_MBK, *strides, *labels, *weights, sums_NPQ, grad_MBK, stride_g, B, *settings)
    rows = Launch(mimic_loss_fwd_kernel, (programs,), arguments, num_warps, registers)
    arguments = (sums_NPQ, programs, *labels, *weights, loss, terms_MM, B, float(temperature), M, BM)
    total = Launch(mimic_loss_sum_kernel, (1,), arguments, 4)
    return [rows, total] if B > 0 else [total], (loss, terms_MM, grad_MBK)


def resident(device: torch.device, num_warps: int, registers: int) -> int:
    """How many programs run on a GPU at once: with more, the last ones would run on a GPU that is half empty.

    The limit here is registers: a multiprocessor has 65,536.
    """
    on_gpu = device.type == "cuda"
    processors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else H100_PROCESSORS
    return processors * max(1, 65536 // (32 * num_warps * registers))


def plan_scale(grad_MBK: Tensor, factor: Tensor) -> Launch:
    """The launch of ``scale_``: a thread takes 16 elements at a time."""
    programs = max(1, min(MAX_PROGRAMS, triton.cdiv(grad_MBK.numel(), 2048)))
    return Launch(scale_kernel, (programs,), (grad_MBK, factor, grad_MBK.numel(), 2048), 4)


def tile(M: int, K: int, dtype: torch.dtype, temperature: float, align: int) -> tuple[int, int, int]:
    """BM, BK and the warps of a program: the whole row if 8 warps can hold it, else a tile of the two-pass form.

    A thread has registers for 64 values, or for 32 if it needs others, as with many branches or a second softmax. A
    tile of the two-pass form is half as wide if a thread does not read 8 classes at once: more warps then fit on a
    multiprocessor. The numbers come from the compiled kernels: with larger numbers registers spill (docs/kernels.md).
    """
    BM = triton.next_power_of_2(M)
    values = BM * (2 if temperature == 1 else 3)  # per class: logarithms and probabilities, for both temperatures
    per_thread = 64 if temperature == 1 and BM <= IN_THREAD else 32
    if dtype == torch.float64:
        values, per_thread = values * 8, 64  # two registers each, and more for an exponential
    BK = max(32, triton.next_power_of_2(K))
    if values * BK > (16384 if BM <= IN_THREAD else 8192):
        half = align < 8 and per_thread == 64 and dtype != torch.float64
        BK = max(16, triton.next_power_of_2((4096 if half else 8192) // values + 1) // 2)
        per_thread = 32 if half else per_thread
    return BM, BK, min(8, triton.next_power_of_2(triton.cdiv(values * BK, per_thread * 32)))


def row_alignment(logits_MBK: Tensor) -> int:
    """The alignment of all rows in elements: a power of two, at most 16 bytes.

    Triton only tests whether a stride is a multiple of 16 elements, which rows of 1000 classes are not. If it is told
    the smaller factor, it makes 16-byte loads.
    """
    stride_m, stride_b, stride_k = logits_MBK.stride()
    align = 16 // logits_MBK.element_size() if stride_k == 1 else 1
    while stride_m % align or stride_b % align:
        align //= 2
    return align
