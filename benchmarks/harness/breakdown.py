"""Where the time of a training step goes, by kind of work, and what the machine's matrix units could do."""

import time
from collections.abc import Callable

import torch

from fastdhm.benchmarks.harness.machine import tf32, wait_for
from fastdhm.engine import profile

PROFILED_STEPS = 3
PEAK_ROUNDS = 5
KINDS = tuple(kind for kind in profile.KINDS if kind not in (profile.WAIT, profile.COMMUNICATION))


def profile_step(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Milliseconds of one step by kind of work; ``other`` is the rest of its wall-clock time, Python's included.

    On CUDA the times are those of kernels, and ``other`` includes the time that the GPU waits. The profiler slows a
    step down a little: trust the shares, not the sums.
    """
    run()
    with profile.profiler(device) as profiler:
        start = time.perf_counter()
        for _ in range(PROFILED_STEPS):
            run()
        wait_for(device)
        seconds = time.perf_counter() - start
    found = profile.spent(profiler.events(), device.type == "cuda", PROFILED_STEPS, seconds)
    return {kind: found[kind] for kind in KINDS}


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
