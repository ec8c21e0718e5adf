"""Where the time of a training step goes, by kind of work, and what the machine's matrix units could do."""

import time
from collections.abc import Callable

import torch

from fastdhm.benchmarks.harness.machine import tf32, wait_for

PROFILED_STEPS = 3
CONVOLUTION, NORM, LOSS, OPTIMIZER, COPIES, OTHER = KINDS = (
    "convolutions", "norm, activation, residual", "loss and accuracy", "optimizer", "casts and copies", "other"
)  # fmt: skip
# kind -> what the name of an operation holds, in small letters; of an operation and those that called it, the outermost
# that fits decides. All that is compiled lies within torch's names for that, which tell something of the rest alone.
NAMES = {
    OPTIMIZER: ("optimizer.", "_fused_sgd", "_fused_adam", "_foreach_"),
    CONVOLUTION: ("conv", "addmm", "aten::linear", "aten::mm"),
    LOSS: ("mimic", "softmax", "nll", "kl_div", "kldiv", "cross_entropy", "crossentropy", "topk", "gather"),
    # every op of ours except the loss
    NORM: ("norm", "relu", "pool", "pad", "aten::add", "addbackward", "mean", "fastdhm::"),
}
# A kernel of the compiler does the work between convolutions, although its name lists everything fused into it.
MADE = "triton_"
COMPILED = "compiled"
CASTS = ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::contiguous")
PEAK_ROUNDS = 5


def profile_step(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Milliseconds of one step by kind of work; ``other`` is the rest of its wall-clock time, Python's included.

    On CUDA the times are those of kernels, and ``other`` includes the time that the GPU waits. The profiler slows a
    step down a little: trust the shares, not the sums.
    """
    on_gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_gpu
    run()
    with torch.profiler.profile(activities=activities) as profile:
        start = time.perf_counter()
        for _ in range(PROFILED_STEPS):
            run()
        wait_for(device)
        seconds = time.perf_counter() - start
    spent = dict.fromkeys(KINDS, 0.0)
    for event in profile.events():
        own_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if own_us > 0 and event.device_type == torch.autograd.DeviceType.CPU:
            spent[kind_of(_lineage(event))] += own_us / 1e3 / PROFILED_STEPS
    spent[OTHER] += max(0.0, 1e3 * seconds / PROFILED_STEPS - sum(spent.values()))
    return spent


def kind_of(lineage: list[str]) -> str:
    """The kind of an operation, from its name and the names of the operations around it, itself first."""
    if lineage[0] in CASTS and not any("optimizer." in name.lower() for name in lineage):
        return COPIES
    for name in reversed(lineage):
        small = name.lower()
        if small.startswith(MADE):
            return NORM
        for kind, parts in NAMES.items() if COMPILED not in small else ():
            if any(part in small for part in parts):
                return kind
    return NORM if any(COMPILED in name.lower() for name in lineage) else OTHER


def _lineage(event) -> list[str]:
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of some square matrix products in ``dtype``: the upper limit for a step.

    On CUDA, float32 is TF32 if convolutions use TF32, as most products of a step are theirs.
    """
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    fastest = float("inf")
    with tf32(torch.backends.cudnn.allow_tf32):
        left @ right
        for _ in range(PEAK_ROUNDS):
            wait_for(device)
            start = time.perf_counter()
            left @ right
            wait_for(device)
            fastest = min(fastest, time.perf_counter() - start)
    return 2 * side**3 / fastest
