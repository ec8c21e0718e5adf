"""``train --profile N``: a trace of N steps, and where their time goes by kind of work.

``bench step`` tells kinds apart by the same names.
"""

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, record_function

from fastdhm.data.loaders.loader import Batch
from fastdhm.engine import distributed
from fastdhm.engine.run import Run
from fastdhm.engine.saved.names import TRACE
from fastdhm.engine.saved.record import to_host
from fastdhm.system.files import plain_name, replacing

STEPS_BEFORE = 5  # are not profiled: they allocate, and the first ones meet new shapes
WAIT, CONVOLUTION, NORM, LOSS, OPTIMIZER, COMMUNICATION, COPIES, OTHER = KINDS = (
    "loader wait", "convolutions", "norm, activation, residual", "loss and accuracy", "optimizer", "communication",
    "casts and copies", "other",
)  # fmt: skip
# kind -> what the name of an operation holds, in small letters; of an operation and those that called it, the outermost
# that fits decides. All that is compiled lies within torch's names for that, which tell something of the rest alone.
NAMES = {
    WAIT: (WAIT,),
    OPTIMIZER: ("optimizer.", "_fused_sgd", "_fused_adam", "_foreach_"),
    COMMUNICATION: ("c10d::", "nccl:", "gloo:", "distributed::reducer"),
    CONVOLUTION: ("conv", "addmm", "aten::linear", "aten::mm"),
    LOSS: ("mimic", "softmax", "nll", "kl_div", "kldiv", "cross_entropy", "crossentropy", "topk", "gather"),
    # every op of ours except the loss
    NORM: ("norm", "relu", "pool", "pad", "aten::add", "addbackward", "mean", "fastdhm::"),
}
# A kernel of the compiler does the work between convolutions, although its name lists everything fused into it.
MADE = "triton_"
COMPILED = "compiled"
CASTS = ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::contiguous")
WHOLE = (WAIT, "optimizer.")  # in them, a copy is no work of its own kind


def kind_of(lineage: list[str]) -> str:
    """The kind of an operation, from its name and the names of the operations around it, itself first."""
    if lineage[0] in CASTS and not any(part in name.lower() for name in lineage for part in WHOLE):
        return COPIES
    for name in reversed(lineage):
        small = name.lower()
        if small.startswith(MADE):
            return NORM
        for kind, parts in NAMES.items() if COMPILED not in small else ():
            if any(part in small for part in parts):
                return kind
    return NORM if any(COMPILED in name.lower() for name in lineage) else OTHER


def spent(events: Iterable[Any], on_gpu: bool, steps: int, seconds: float) -> dict[str, float]:
    """Milliseconds of a step by kind of work, from the events of a profile of ``steps`` in ``seconds``.

    On a GPU they are the times of kernels, the wait for the loader aside. ``other`` is the rest of the wall-clock time:
    Python's, and on a GPU also what it waits.
    """
    found = dict.fromkeys(KINDS, 0.0)
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CPU:
            kind = kind_of(_lineage(event))
            own_us = event.self_device_time_total if on_gpu and kind != WAIT else event.self_cpu_time_total
            found[kind] += max(0.0, own_us) / 1e3 / steps
    found[OTHER] += max(0.0, 1e3 * seconds / steps - sum(found.values()))
    return found


def _lineage(event: Any) -> list[str]:
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def profiler(device: torch.device) -> torch.profiler.profile:
    """torch's profiler of what ``device`` computes, without the lines that its library prints of itself."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    return torch.profiler.profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda"))


class StepProfile:
    """Profiles ``profile`` steps of a run, within one epoch; the first of several processes profiles its own.

    They begin ``STEPS_BEFORE`` steps after the run does, or after its step has ``settled``: it is compiled by then if
    it ever will be.
    """

    def __init__(self, run: Run, settled: Callable[[], bool], say: Callable[[str | Table], None]):
        self.run, self.settled, self.say = run, settled, say
        self.done = not run.config.profile or distributed.rank() > 0
        self.begin = run.at.step + STEPS_BEFORE

    @contextmanager
    def of(self, batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
        """The batches of an epoch; what the loop does between two of them is its step."""
        if self.done:
            yield batches
            return
        with closing(self._profiled(batches)) as profiled:
            yield profiled
        if not self.done and self.run.at.step >= self.run.total_steps:
            self.done = True
            self.say(f"profile is {self.run.config.profile}: the run ended before its first step to profile")

    def _profiled(self, batches: Iterator[Batch]) -> Generator[Batch, None, None]:
        run, profile, first, seconds = self.run, None, 0, 0.0
        try:
            while not self.done:
                if not self.settled():
                    self.begin = run.at.step + STEPS_BEFORE
                if profile is None and run.at.step >= self.begin:
                    first, profile = run.at.step, profiler(run.device)
                    profile.start()
                    seconds = -time.perf_counter()
                with record_function(WAIT):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch
                if profile is not None and run.at.step - first == run.config.profile:
                    break
        finally:
            if profile is not None:
                to_host(torch.zeros(1, device=run.device))  # its steps have ended
                seconds += time.perf_counter()
                profile.stop()
                if run.at.step > first:
                    self._write(profile, first, seconds)
        yield from batches

    def _write(self, profile: torch.profiler.profile, first: int, seconds: float) -> None:
        self.done, steps = True, self.run.at.step - first
        on_gpu = self.run.device.type == "cuda"
        table = Table(
            "work", title=f"steps {first + 1} to {self.run.at.step}, under the profiler", title_justify="left"
        )
        table.add_column("ms a step", justify="right")
        table.add_column("%", justify="right")
        found = spent(profile.events(), on_gpu, steps, seconds)
        for kind, ms in found.items():
            table.add_row(kind, f"{ms:.2f}", f"{100 * ms / sum(found.values()):.1f}")
        self.say(table)
        path = self.run.dir / TRACE
        with replacing(path) as temporary, plain_name(temporary) as name:
            profile.export_chrome_trace(name)
        self.say(f"trace: {path} (open it in ui.perfetto.dev or chrome://tracing)")
