"""``fastdhm bench scale``: what it costs that many processes are one run.

Two questions, each answered by processes that stand ready and are timed in turns:

- *sampled branches*: the ways that torch has to share the gradients of a step that computes some of the branches,
  against fastdhm's. All must end at the weights of ``after``, which sends everything after the backward pass.
  ``alone`` shares nothing. See ``reference/shared_gradients.py``.
- *processes*: the run of several processes against one that has the whole machine, and against one that has a
  process's share of the machine and of the batch: how far throughput grows with the number of processes.

Then arithmetic, not a measurement: a ring of GPUs whose speed, bandwidth and latency are given.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastdhm import models
from fastdhm.benchmarks.harness import report
from fastdhm.benchmarks.harness.frame import Frame, check_counts
from fastdhm.benchmarks.harness.timing import Comparison, Spread, spread, timed_elsewhere
from fastdhm.benchmarks.reference.contender import make_config
from fastdhm.benchmarks.reference.shared_gradients import WAYS
from fastdhm.benchmarks.reference.worker import ANSWER, MESSAGE
from fastdhm.config import TrainConfig
from fastdhm.engine.build import build_model
from fastdhm.errors import UserError
from fastdhm.system import processors

SAMPLE_SECONDS = 1.0  # the steps of a sample take about this long
PAPER_ARCH, ON_PAPER = "resnet50", (1, 8, 64, 512)
BACKWARD = 2 / 3  # of a step's work: gradients of inputs and of weights, beside the forward pass


def bench(
    frame: Frame,
    *,
    arch: str,
    image_size: int | None,
    batch_size: int | None,
    precision: str,
    processes: int,
    images_per_s: float,
    bandwidth: float,
    latency: float,
    gpu_batch: int,
) -> int:
    """Time all of it; returns the exit status, 1 if a way shares gradients wrongly.

    Args:
        arch: the network; the method is dhm.
        image_size: side in pixels (None: the paper's).
        batch_size: images of a step of all processes (None: 128 small ones or 32 large ones).
        precision: float32, bfloat16, float16 or auto.
        processes: of the run, on this machine.
        images_per_s: on paper: of one GPU that trains :data:`PAPER_ARCH`.
        bandwidth: on paper: GB/s between two GPUs of the ring.
        latency: on paper: microseconds of a message between them.
        gpu_batch: on paper: images of a step that a GPU has.

    Raises:
        ValueError: a value out of range, or a folder that is not writable.
    """
    check_counts(image_size=image_size, batch_size=batch_size, gpu_batch=gpu_batch)
    if processes < 2:
        raise UserError(f"--processes is {processes}: must be at least 2")
    for flag, value in (("images-per-s", images_per_s), ("bandwidth", bandwidth), ("latency", latency)):
        if not value > 0:
            raise UserError(f"--{flag} is {value:g}: must be above 0")
    config = make_config(
        arch, image_size, batch_size, precision=precision, compile="off", device=frame.device.type, method="dhm"
    )
    if config.batch_size % processes:
        raise UserError(f"--batch-size is {config.batch_size}: must be a multiple of the {processes} processes")
    on_paper = make_config(PAPER_ARCH, None, gpu_batch, device=frame.device.type)
    ring = Ring(gradient_bytes(on_paper), images_per_s, gpu_batch, bandwidth * 1e9, latency / 1e6)
    with frame.measuring():
        comparisons = [sampled(frame, config, processes), many(frame, config, processes)]
    for comparison in comparisons:
        report.print_comparison(frame.console, comparison)
    frame.plot_bars(comparisons, "Sharing gradients")
    rows = [ring.row(number) for number in ON_PAPER]
    report.print_rows(
        frame.console, f"on paper, not measured: {ring.words()}", ["GPUs", *Ring.COLUMNS],
        [[str(number), *row] for number, row in zip(ON_PAPER, rows, strict=True)],
    )  # fmt: skip
    settings = {"arch": arch, "image_size": image_size, "batch_size": config.batch_size, "processes": processes}
    return frame.conclude(
        comparisons, marks=_marks(comparisons, config, processes),
        settings=settings | {"precision": config.precision}, answer={"on_paper": asdict(ring)},
    )  # fmt: skip


def sampled(frame: Frame, config: TrainConfig, processes: int) -> Comparison:
    """The ways to share gradients, in steps that compute the sets of branches that are drawn."""
    config = TrainConfig(**asdict(config) | {"sampler": "structural"})
    label = f"{config.arch} sampled branches"
    frame.say(f"\n{label}, {processes} processes: checking against gradients sent after the backward pass")
    with Crew(frame, config, processes, list(WAYS)) as crew:
        failures = crew.ask("check")
        seconds = _in_turns(frame, {name: (crew, name) for name in WAYS if failures.get(name) is None})
    return timed_elsewhere(label, {name: failures.get(name) for name in WAYS}, seconds)


def many(frame: Frame, config: TrainConfig, processes: int) -> Comparison:
    """The run of several processes, of one that has the machine, and of one that has a process's share of it."""
    label = f"{config.arch} all branches"
    frame.say(f"\n{label}: 1 and {processes} processes, batch {config.batch_size} in {config.precision}")
    part = TrainConfig(**asdict(config) | {"batch_size": config.batch_size // processes})
    with (
        Crew(frame, config, processes, ["fastdhm", "after", "alone"]) as crew,
        Crew(frame, config, 1, ["alone"]) as whole,
        Crew(frame, part, 1, ["alone"], share=processes) as one,
    ):
        peers = {
            f"{processes} processes": (crew, "fastdhm"),
            "without sharing": (crew, "alone"),
            "gradients alone": (crew, MESSAGE),
            "1 process": (whole, "alone"),
            f"1/{processes} of it": (one, "alone"),
        }
        failures = crew.ask("check")
        seconds = _in_turns(frame, peers)
    return timed_elsewhere(label, dict.fromkeys(peers) | {f"{processes} processes": failures["fastdhm"]}, seconds)


class Crew:
    """Processes that are one run, ready to take steps; ``share``: how many of them could have the machine at once."""

    COMMAND = ("-m", "fastdhm.benchmarks.reference.worker")

    def __init__(self, frame: Frame, config: TrainConfig, processes: int, ways: Sequence[str], *, share: int = 1):
        threads = max(1, (frame.threads or processors.count()) // (processes * share))
        with socket.socket() as found:
            found.bind(("localhost", 0))
            port = found.getsockname()[1]
        shared = os.environ | {"OMP_NUM_THREADS": str(threads), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        command = [sys.executable, *self.COMMAND, json.dumps(asdict(config)), *ways]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 # closed by __exit__
        self.workers = [
            subprocess.Popen(
                command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            )
            for rank in range(processes)
        ]  # fmt: skip

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()
            worker.communicate()
        self.errors.close()

    def ask(self, *order: object) -> Any:
        """Tell all of them, and return what the first answers."""
        for worker in self.workers:
            assert worker.stdin is not None  # it is a pipe
            worker.stdin.write(json.dumps(order) + "\n")
            worker.stdin.flush()
        answer, *_ = [self._answer(worker) for worker in self.workers]
        return answer

    def _answer(self, worker: subprocess.Popen) -> Any:
        assert worker.stdout is not None  # it is a pipe
        for line in worker.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise UserError(f"a process of the benchmark ended with status {worker.wait()}: {said[0][:300]}")


def _in_turns(frame: Frame, peers: dict[str, tuple[Crew, str]]) -> dict[str, list[float]]:
    """Seconds of a step for each round and peer."""
    steps = {}
    for name, (crew, way) in peers.items():
        crew.ask(way, 1)  # warm-up
        steps[name] = 1 if frame.quick else max(1, round(SAMPLE_SECONDS / crew.ask(way, 1)))
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    assert frame.rounds is not None  # the flag has a default
    for _ in range(frame.rounds):
        for name, (crew, way) in peers.items():
            seconds[name].append(crew.ask(way, steps[name]) / steps[name])
    return seconds


def gradient_bytes(config: TrainConfig) -> int:
    """Bytes of the gradients that a step of all branches sends."""
    model = build_model(config, models.family_of(config.arch).num_classes)
    return sum(p.numel() * p.element_size() for p in model.parameters())


@dataclass(frozen=True)
class Ring:
    """A ring all-reduce of ``N`` GPUs on paper.

    A GPU sends ``2 (N - 1) / N`` of the gradients' bytes in ``2 (N - 1)`` messages. What of this fits into the backward
    pass, two thirds of a step, costs nothing; the rest is waited for. Each GPU keeps its batch, so the whole grows.
    """

    COLUMNS = ("batch", "all-reduce", "waited for", "images/s", "efficiency")

    gradient_bytes: int
    images_per_s: float
    batch_size: int
    bandwidth: float
    latency: float

    def seconds(self, gpus: int) -> float:
        """Seconds of the all-reduce of one step."""
        return 2 * (gpus - 1) * (self.gradient_bytes / gpus / self.bandwidth + self.latency)

    def waited(self, gpus: int) -> float:
        """Seconds of it that no computing hides."""
        return max(0.0, self.seconds(gpus) - BACKWARD * self.batch_size / self.images_per_s)

    def row(self, gpus: int) -> list[str]:
        """As the table has it."""
        step = self.batch_size / self.images_per_s
        efficiency = step / (step + self.waited(gpus))
        return [
            f"{gpus * self.batch_size:,}", f"{1e3 * self.seconds(gpus):.1f} ms", f"{1e3 * self.waited(gpus):.1f} ms",
            f"{gpus * self.images_per_s * efficiency:,.0f}", f"{efficiency:.0%}",
        ]  # fmt: skip

    def words(self) -> str:
        """What the table is of."""
        return (
            f"{PAPER_ARCH} dhm, {self.gradient_bytes / 2**20:.0f} MiB of gradients, {self.batch_size} images a GPU at "
            f"{self.images_per_s:,.0f}/s,\n{self.bandwidth / 1e9:g} GB/s and {1e6 * self.latency:g} us between two GPUs"
        )


def _marks(comparisons: Sequence[Comparison], config: TrainConfig, processes: int) -> list[report.Mark]:
    sets, runs = comparisons
    marks = report.ratio_marks([sets], {f"{name} over alone": (name, "alone") for name in WAYS if name != "alone"})
    run, per_process = f"{processes} processes", f"1/{processes} of it"
    for name in (run, "1 process", per_process):
        images = config.batch_size // (processes if name == per_process else 1)
        if runs.time_ms(name):
            rate = spread([1e3 * images / ms for ms in runs.results[name].samples_ms])
            marks.append(report.Mark(name=name, where=runs.label, value=rate, unit="images/s"))
    marks += report.ratio_marks([runs], {f"1 process over {run}": ("1 process", run)})
    marks += report.ratio_marks([runs], {f"{per_process} over {run} (weak scaling)": (per_process, run)})
    whole, without = (runs.results[name].samples_ms for name in (run, "without sharing"))
    if whole:
        waited = spread([100 * (1 - alone / shared) for shared, alone in zip(whole, without, strict=True)])
        marks.append(report.Mark(name="of a step waits for gradients", where=runs.label, value=waited, unit="%"))
    sent = gradient_bytes(config) / 2**20
    return [*marks, report.Mark(name="gradients", where="a step", value=Spread(sent, sent, sent), unit="MiB")]
