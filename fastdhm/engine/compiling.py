"""The compiled step of a run: a second process makes it ready, and the run takes it up between two steps.

Compiling takes from half a minute to minutes, and a run does not wait for it. It trains uncompiled while a child
process builds the same network and compiles the same step, which fills the caches that torch keeps on disk
(``/tmp/torchinductor_USER``, or ``$TORCHINDUCTOR_CACHE_DIR``). Then the run compiles its own step out of them, in
seconds.

The clock decides when that is, and a compiled step rounds differently from an uncompiled one. So the run writes a
checkpoint at the change, and a run that is resumed behind it is compiled from its first step on: it continues bit for
bit. A deterministic run compiles before its first step, or not at all.
"""

import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdhm.config import TrainConfig
from fastdhm.data.loaders.crops import height_width
from fastdhm.data.loaders.loader import Batch
from fastdhm.engine import distributed
from fastdhm.engine.device import autocast, computing_on
from fastdhm.engine.fast.blocks import compile_blocks, forwards, goes_by_block
from fastdhm.engine.fast.graphs import check_recomputed
from fastdhm.engine.optim.schedule import image_side, image_sides
from fastdhm.engine.run import Run
from fastdhm.engine.saved import checkpoint
from fastdhm.engine.saved.record import Log
from fastdhm.engine.step import NUM_SIDES, make_compute
from fastdhm.errors import UserError
from fastdhm.system import processors

# Steps before the child starts: the first must not share its cores, and by the second a GPU's memory is spoken for.
STEPS_ALONE = 2
ROOM_FOR_THE_RUN = 1 << 30  # bytes of a GPU's free memory that the child leaves at least
LIMIT_S = 1800.0  # after that the child counts as stuck
END_S = 5.0  # how long to wait for a killed process
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
NICE = 10  # of the child and its compilers, which compete with the step, or with what launches it and feeds it


class SwitchingCompute:
    """The differentiable part of a run's step, as :func:`make_compute` has it: uncompiled, then compiled.

    Use it as a context: leaving it ends the child.
    """

    def __init__(self, run: Run, log: Log, say: Callable[[str], None]):
        self.run, self.log, self.say = run, log, say
        self.child: Child | None = None
        self.first_step = run.at.step
        config = run.config
        # several processes go over at the same step, which is the first
        at_once = config.deterministic or run.at.compiled_at is not None or distributed.count() > 1
        self.waiting = config.compile == "on" and not at_once
        if config.compile == "on" and run.at.compiled_at is None and at_once:
            run.at.compiled_at = run.at.step
        self.current = computes(run, compiled=config.compile == "on" and at_once)

    def __call__(self, *args: Any) -> tuple[torch.Tensor, ...]:
        return self.current(*args)

    def swap_if_ready(self) -> None:
        """Between two steps: start the child, see whether it has ended, change to the compiled step if it worked."""
        if not self.waiting:
            return
        run = self.run
        if self.child is None:
            if run.at.step >= self.first_step + STEPS_ALONE:
                self._start()
            return
        ended = self.child.ended()
        if ended is None:
            if time.monotonic() - self.asked > LIMIT_S:
                self._stay(f"compiling it was not done in {LIMIT_S / 60:.0f} minutes")
                self.child.close()
            return
        if ended != 0:
            killed = "was killed, as when memory runs out" if ended < 0 else "failed"
            self._stay(f"compiling it {killed}, {self.child.output} says what it did")
            return
        self.waiting = False
        self.child.output.unlink(missing_ok=True)
        run.at.compiled_at = run.at.step
        run.save()  # however the run ends from here on, a resumed one is compiled at the same step
        self.log.write("compile", step=run.at.step, swap_step=run.at.step, ahead_seconds=self.child.lasted)
        self.current = computes(run, compiled=True)

    def _start(self) -> None:
        self.asked = time.monotonic()
        try:
            self.child = Child(self.run)
        except OSError as error:
            self._stay(f"a process to compile it cannot be started ({error.strerror})")

    def _stay(self, why: str) -> None:
        self.waiting = False
        self.say(f"the step stays uncompiled: {why}")

    def __enter__(self) -> "SwitchingCompute":
        return self

    def __exit__(self, *_: object) -> None:
        if self.child is not None:
            self.child.close()


def check_compiled(run: Run, compiled: bool) -> None:
    """``ValueError`` if a step that is ``compiled``, or captured in a graph, cannot compute activations again."""
    config = run.config
    if compiled and config.activation_checkpointing and goes_by_block(run.model):
        raise UserError(
            f"compile is on and activation_checkpointing is true: {config.arch} is so deep that it is compiled block "
            "by block, and these do not go together; set one of them off"
        )
    if config.cuda_graphs and config.activation_checkpointing:
        check_recomputed(run.model)


def when_compiled(run: Run) -> str:
    """For a person, in parentheses: when the compiled step is used; empty if it never is."""
    if run.config.compile == "off":
        return ""
    if run.at.compiled_at is not None and run.at.step > run.at.compiled_at:
        return f" (since step {run.at.compiled_at})"
    how = "by the block, " if goes_by_block(run.model) else ""
    when = "before the first step" if run.config.deterministic else "beside the run, which takes it up when ready"
    return f" ({how}{when})"


def computes(run: Run, compiled: bool) -> Callable:
    """:func:`make_compute` with a run's settings; a deep network is compiled block by block."""
    config, model = run.config, run.model
    variants = len(run.branch_sets) * (2 if config.freeze_epochs else 1)
    calls = compile_blocks(model, NUM_SIDES * variants) if compiled and goes_by_block(model) else {}
    forward = run.network if compiled else run.forward
    in_one_piece = compiled and not calls
    if compiled:
        import torch._inductor.config as inductor  # takes a second

        known = inductor.compile_threads or processors.count()
        inductor.compile_threads = min(known, processors.count())  # torch counts without quotas
    settings = (config.temperature, config.label_smoothing, in_one_piece, config.impl, variants)
    compute = make_compute(forward, *settings, headless=run.headless)
    if calls:
        compute = partial(_by_block, calls, compute)
    return compute if run.teacher is None else partial(_taught, run.teacher.logits(NUM_SIDES * compiled), compute)


def _by_block(
    calls: Mapping[nn.Module, Callable], compute: Callable, *args: Any, **taught: Any
) -> tuple[torch.Tensor, ...]:
    with forwards(calls):
        return compute(*args, **taught)


def _taught(teacher: Callable, compute: Callable, image_BCHW: torch.Tensor, *args: Any) -> tuple[torch.Tensor, ...]:
    """The teacher's graph is its own: there is one whatever the set of branches is."""
    return compute(image_BCHW, *args, taught_BK=teacher(image_BCHW))


class Child:
    """The process that compiles a run's step; it ends with the run, however that ends."""

    COMMAND = (sys.executable, "-m", "fastdhm.engine.compiling")

    def __init__(self, run: Run):
        self.started = time.monotonic()
        self.lasted: float | None = None
        self.output = run.dir / "compile.log"
        task = {
            "config": asdict(run.config),
            "run_dir": str(run.dir),
            "classes": len(run.classes),
            "pretrained": run.pretrained,
            "epoch": run.at.epoch,
            "threads": torch.get_num_threads(),  # compiled code has the number in it
            "room": room_for(run),
        }
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                self.COMMAND,
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        assert self.process.stdin is not None  # it is a pipe
        self.tasks = self.process.stdin
        with suppress(BrokenPipeError):  # it has ended already, which ended() tells
            self.tasks.write(json.dumps(task).encode() + b"\n")
            self.tasks.flush()

    def ended(self) -> int | None:
        """Its exit status, ``None`` while it works."""
        status = self.process.poll()
        if status is not None and self.lasted is None:
            self.lasted = time.monotonic() - self.started
        return status

    def close(self) -> None:
        """End it, and the compilers that it started."""
        if self.ended() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # it hangs in the kernel, and ends when that lets it go
                self.process.wait(END_S)
            with suppress(OSError):
                self.output.unlink()
        with suppress(OSError):
            self.tasks.close()


def room_for(run: Run) -> int:
    """Bytes of a GPU's memory that the run may still need beyond what it holds, if its images will grow."""
    if run.device.type != "cuda":
        return 0
    side = image_side(run.at.epoch / run.config.epochs, run.side, run.config.progressive)
    at_full_size = torch.cuda.max_memory_allocated(run.device) * (run.side / side) ** 2
    return max(ROOM_FOR_THE_RUN, int(at_full_size) - torch.cuda.memory_reserved(run.device))


def end_with_parent() -> None:
    """End this process and its children when the parent's end of standard input closes, even by a SIGKILL."""

    def wait() -> None:
        os.read(0, 1)  # and not sys.stdin, whose lock is missed when the interpreter ends
        os.killpg(0, signal.SIGKILL)

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)  # it may end while this process stands still
    threading.Thread(target=wait, daemon=True).start()


def compile_ahead(task: dict[str, Any]) -> None:
    """Compile all that a run will compute from its epoch on, on noise: each size and set of branches, frozen or not."""
    config = checkpoint.config_from(task["config"], Path(task["run_dir"]))
    os.nice(NICE)
    torch.set_num_threads(task["threads"])
    run = Run(config, Path(task["run_dir"]), tuple(map(str, range(task["classes"]))))
    run.pretrained = tuple(task["pretrained"])
    if run.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(run.device)
        torch.cuda.set_per_process_memory_fraction(max(0, free - task["room"]) / total, run.device)
    with computing_on(run.device):
        compute_all(run, task["epoch"])


def compute_all(run: Run, epoch: int) -> None:
    """Forward and backward of each variant of a run's compiled step, from ``epoch`` on."""
    config, compute = run.config, computes(run, compiled=True)
    stages = variants(config, epoch, run.side)
    for (epoch, side), active in itertools.product(stages, run.branch_sets):
        run.at.epoch = epoch
        run.begin_epoch()
        image_BCHW, labels = run.prepare(random_batch(run), 0, side)
        image_BCHW, labels = image_BCHW.chunk(config.accumulate)[0], labels.chunk(config.accumulate)[0]
        with autocast(run.device, run.precision):
            weights_AA = run.taught(run.weights[active])
            loss, *_ = compute(image_BCHW, labels.target_B, weights_AA, active, *labels.soft)
        run.scaler.scale(loss / config.accumulate).backward()
        run.optimizer.zero_grad()


def variants(config: TrainConfig, epoch: int, side: int) -> Iterator[tuple[int, int]]:
    """What the step is compiled for, as (an epoch that has it, side of the images), in the order of the run."""
    thawed = max(epoch, config.freeze_epochs)
    for begin, end in ((epoch, thawed), (thawed, config.epochs)):
        if begin < end:
            for part in image_sides(begin / config.epochs, end / config.epochs, side, config.progressive):
                yield begin, part


def random_batch(run: Run) -> Batch:
    """A batch of noise, as the loader would give it."""
    config = run.config
    height, width = height_width(config.image_size)
    image_BHWC = torch.randint(256, (config.batch_size, height, width, 3), dtype=torch.uint8)
    index_B = torch.arange(config.batch_size)
    return Batch(image_BHWC, index_B % len(run.classes), index_B)


if __name__ == "__main__":
    task = json.loads(sys.stdin.buffer.readline())
    end_with_parent()
    compile_ahead(task)
