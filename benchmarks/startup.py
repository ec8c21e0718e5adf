"""``fastdhm bench startup``: from the command to the first optimizer step and to full speed, each in its own process.

``cold`` runs ``fastdhm train`` with empty caches of torch's compiler, of numba and of prepared data. ``warm`` runs it
again with the caches of the cold run. ``reference`` is the eager reference as a program. Time begins with the process.
On a CPU the first step ends at the run's own ``startup_seconds``. On a GPU that is only the launch of the step. There,
and for all later steps, a step ends when its row appears in the log, which is written at every step for this. Full
speed begins with the first five steps in a row whose median time is at most 1.2 times the median of the last half.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fastdhm.benchmarks.harness import report
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.benchmarks.harness.frame import Frame, check_value
from fastdhm.benchmarks.harness.timing import Comparison
from fastdhm.benchmarks.reference.contender import recipe_config
from fastdhm.data.sources.load import unknown_dataset
from fastdhm.data.sources.source import DATASETS
from fastdhm.engine.saved.names import LOG
from fastdhm.errors import UserError

CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "FASTDHM_DATA")
POLL_SECONDS = 0.005
IN_A_ROW, AT_SPEED = 5, 1.2
FEWEST_STEPS = 4


@dataclass(frozen=True)
class Started:
    """Seconds from the start of a process to the end of each step, or why there are none."""

    step_seconds: list[float]
    failure: str | None = None

    def full_speed(self) -> float:
        """Seconds to the end of the first step at full speed."""
        durations = [after - before for before, after in zip(self.step_seconds, self.step_seconds[1:], strict=False)]
        steady = median(durations[len(durations) // 2 :])
        for step in range(len(durations)):
            if median(durations[step : step + IN_A_ROW]) <= AT_SPEED * steady:
                return self.step_seconds[step + 1]
        return self.step_seconds[-1]


def bench(frame: Frame, *, dataset: str, arch: str, method: str, steps: int, compile: str) -> int:
    """Time all of it; returns the exit status, 1 if a run failed.

    Args:
        dataset: as in training.
        arch: the network.
        method: dhm, dsl or baseline.
        steps: of each run; the last half of them must be at full speed.
        compile: of the runs, as in training.

    Raises:
        ValueError: a value out of range, or a folder that is not writable.
    """
    if steps < FEWEST_STEPS:
        raise UserError(f"--steps is {steps}: must be at least {FEWEST_STEPS} to show a speed")
    check_value("compile", compile, ("off", "on", "auto"))
    recipe_config(dataset, arch, method, device=str(frame.device))  # refuse wrong values before anything runs
    if dataset.partition(":")[0] not in {name.partition(":")[0] for name in DATASETS}:
        raise unknown_dataset(dataset)
    if dataset == "imagenet":
        raise UserError("--dataset is imagenet: a cold start has an empty data folder. Give folder:PATH, its folder")
    run = {"dataset": dataset, "arch": arch, "method": method, "device": str(frame.device)}
    with frame.measuring():
        started = measure(frame, run, steps, compile)
    label = f"{arch} {method} {dataset}"
    comparisons = [
        _comparison(f"{label}: to the first step", started, lambda run: run.step_seconds[0]),
        _comparison(f"{label}: to full speed", started, Started.full_speed),
    ]
    for comparison in comparisons:
        report.print_comparison(frame.console, comparison)
    frame.plot_bars(comparisons, "From the command on")
    return frame.conclude(
        comparisons,
        marks=[mark for comparison in comparisons for mark in _marks(comparison)],
        settings=run | {"steps": steps, "compile": compile},
        answer=_answer(comparisons),
    )


def measure(frame: Frame, run: dict[str, str], steps: int, compile: str) -> dict[str, list[Started]]:
    """One process of each kind per round; the first one of a round finds empty caches."""
    started: dict[str, list[Started]] = {"cold": [], "warm": [], "reference": []}
    flags = [part for name, value in (run | {"compile": compile}).items() for part in (f"--{name}", value)]
    assert frame.rounds is not None  # the flag has a default
    for number in range(frame.rounds):
        frame.say(f"round {number + 1} of {frame.rounds}: cold, warm, reference")
        with tempfile.TemporaryDirectory(prefix="fastdhm-bench-") as folder:
            caches = {name: str(Path(folder) / name.lower()) for name in CACHES}
            for kind in ("cold", "warm"):
                run_dir, own_word = Path(folder) / kind, frame.device.type == "cpu"
                started[kind].append(start_training(flags, steps, run_dir, caches, frame.threads, own_word))
            log = Path(folder) / "reference.jsonl"
            started["reference"].append(start_reference(list(run.values()), steps, log, caches, frame.threads))
    return started


def start_training(
    flags: Sequence[str], steps: int, run_dir: Path, caches: dict[str, str], threads: int | None, own_word: bool
) -> Started:
    """Run ``fastdhm train`` for some steps and watch its log; ``own_word``: the log itself says when step 1 ended."""
    more = ["--max-steps", str(steps), "--log-every", "1", "--run-dir", str(run_dir)]
    command = [sys.executable, "-m", "fastdhm", "train", *flags, *more]
    return watch(command, run_dir / LOG, steps, caches, threads, own_word)


def start_reference(
    arguments: Sequence[str], steps: int, log: Path, caches: dict[str, str], threads: int | None
) -> Started:
    """Run the reference for some steps and watch its log."""
    command = [sys.executable, "-m", "fastdhm.benchmarks.reference.run", str(log), str(steps), *arguments]
    return watch(command, log, steps, caches, threads)


def watch(
    command: Sequence[str], log: Path, steps: int, caches: dict[str, str], threads: int | None, own_word: bool = True
) -> Started:
    """Run a command to its end; returns when each step's row appeared in its log (or what the log says of step 1).

    Raises:
        ValueError: the command refuses its arguments.
    """
    environment = os.environ | caches | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        step_seconds: list[float] = []
        rows: list[dict] = []
        ended = False
        try:
            while not ended:
                time.sleep(POLL_SECONDS)
                ended = process.poll() is not None
                now, rows = time.perf_counter() - start, _rows(log)
                taken = sum(row["kind"] == "step" for row in rows)
                step_seconds += [now] * (taken - len(step_seconds))
        finally:
            process.kill()  # if the loop ended early; no effect on a process that has ended
            process.wait()
        output.seek(0)
        last = output.read().decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
    if process.returncode == 2:  # it refused its arguments, which came from ours
        raise UserError(last[0].removeprefix("fastdhm: error: "))
    if process.returncode:
        return Started([], f"it ended with status {process.returncode}: {last[0][:200]}")
    if len(step_seconds) != steps:
        advice = "take fewer --steps, or more images"
        return Started([], f"its log has {len(step_seconds)} steps: must be {steps}. {advice}")
    told = [row["startup_seconds"] for row in rows if own_word and "startup_seconds" in row]
    return Started([*(told or step_seconds)[:1], *step_seconds[1:]])


def _rows(log: Path) -> list[dict]:
    """The complete rows of a log that is being written."""
    text = log.read_text("utf-8") if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _comparison(label: str, started: dict[str, list[Started]], seconds: Callable[[Started], float]) -> Comparison:
    failures = {name: next((run.failure for run in runs if run.failure), None) for name, runs in started.items()}
    samples = {name: [seconds(run) for run in started[name]] for name, failure in failures.items() if not failure}
    return harness.timed_elsewhere(label, failures, samples)


def _answer(comparisons: Sequence[Comparison]) -> dict[str, float | None]:
    """Median seconds to both moments for every kind of run, and the speedup to the first step when warm."""
    answer: dict[str, float | None] = {}
    for moment, comparison in zip(("first_step", "full_speed"), comparisons, strict=True):
        for name in comparison.results:
            median_ms = comparison.median_ms(name)
            answer[f"{name}_{moment}_s"] = median_ms / 1e3 if median_ms else None
    return answer | {"speedup": comparisons[0].speedup("reference", "warm")}


def _marks(comparison: Comparison) -> list[report.Mark]:
    times = {name: comparison.time_ms(name) for name in comparison.results}
    return [
        report.Mark(
            name=name, where=comparison.label, unit="s",
            value=harness.Spread(*(value / 1e3 for value in (time_ms.median, time_ms.low, time_ms.high))),
        )
        for name, time_ms in times.items() if time_ms
    ]  # fmt: skip
