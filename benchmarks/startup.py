"""``fastdhm bench startup``: from the command to the first optimizer step and to full speed, in processes of their own.

``cold`` runs ``fastdhm train`` with empty caches: of torch's compiler, of numba's, and of prepared data; ``warm`` runs
it again with what the cold run has left there; ``reference`` is the eager reference as a program. Time begins with the
process. The first step's is the run's own ``startup_seconds`` where its log has it, all others are the moments at which
a step's row appears in the log, which is written at every step for that. A run is at full speed from the first step on
from which five in a row take, at the median, no more than 1.2 times what those of the last half take.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console

from fastdhm import models
from fastdhm.benchmarks import harness, machine, report
from fastdhm.benchmarks.harness import Comparison, Result
from fastdhm.data.sources import DATASETS, unknown_dataset
from fastdhm.engine.device import pick_device
from fastdhm.errors import UserError
from fastdhm.methods import check as check_method

QUICK = {"dataset": "synthetic:512", "arch": "resnet8", "steps": 8}
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "FASTDHM_DATA")
POLL_SECONDS = 0.005
IN_A_ROW, AT_SPEED = 5, 1.2
FEWEST_STEPS = 4


@dataclass(frozen=True)
class Started:
    """Seconds from the start of a process to the end of each of its steps, or why there are none."""

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


def bench(
    *,
    dataset: str = "synthetic",
    arch: str = "resnet32",
    method: str = "dhm",
    steps: int = 60,
    compile: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    rounds: int = 3,
    quick: bool = False,
    out: Path = Path("bench"),
    as_json: bool = False,
) -> int:
    """Measure, print and write all of it; returns the exit status, 1 if a run failed.

    Args:
        dataset: as in training.
        arch: the network.
        method: dhm, dsl or baseline.
        steps: of each run; enough for the last half of them to be at full speed.
        compile: of the runs, as in training.
        device: auto, cpu, cuda or cuda:N; the reference takes cuda where there is one.
        threads: of torch (None: as many as it has).
        rounds: runs of each kind.
        quick: a smoke run: a small network, few steps, one round.
        out: folder for JSON, CSV and the plot.
        as_json: print one JSON object on stdout, all else on stderr.

    Raises:
        ValueError: a value that cannot be, or a folder that cannot be written to.
    """
    harness.check_counts(rounds=rounds, threads=threads)
    if quick:
        dataset, arch, steps, rounds = QUICK["dataset"], QUICK["arch"], QUICK["steps"], 1
    if steps < FEWEST_STEPS:
        raise UserError(f"--steps is {steps}: must be at least {FEWEST_STEPS}, or there is no speed to tell")
    models.check(arch)
    check_method(method)
    if dataset.partition(":")[0] not in {name.partition(":")[0] for name in DATASETS}:
        raise unknown_dataset(dataset)
    console, place = Console(stderr=as_json), pick_device(device)
    report.check_folder(out)
    about = machine.describe(place)
    report.print_machine(console, about)
    flags = ["--dataset", dataset, "--arch", arch, "--method", method, "--compile", compile, "--device", str(place)]
    started: dict[str, list[Started]] = {"cold": [], "warm": [], "reference": []}
    for number in range(rounds):
        console.print(f"round {number + 1} of {rounds}: cold, warm, reference", highlight=False)
        with tempfile.TemporaryDirectory(prefix="fastdhm-bench-") as folder:
            caches = {name: str(Path(folder) / name.lower()) for name in CACHES}
            for kind in ("cold", "warm"):
                started[kind].append(start_training(flags, steps, Path(folder) / kind, caches, threads))
            arguments = [str(steps), dataset, arch, method]
            started["reference"].append(start_reference(arguments, Path(folder) / "reference", caches, threads))
    label = f"{arch} {method} {dataset}"
    comparisons = [
        _comparison(f"{label}: to the first step", started, lambda run: run.step_seconds[0]),
        _comparison(f"{label}: to full speed", started, Started.full_speed),
    ]
    for comparison in comparisons:
        report.print_comparison(console, comparison)
    report.plot_bars(out / "startup.png", comparisons, f"From the command on, {about['gpu'] or about['cpu']}")
    settings = {"dataset": dataset, "arch": arch, "method": method, "steps": steps, "compile": compile}
    settings |= {"device": str(place), "rounds": rounds, "quick": quick}
    return report.conclude(
        "startup", comparisons, marks=[mark for c in comparisons for mark in _marks(c)], machine=about,
        settings=settings, folder=out, console=console, as_json=as_json, answer=_answer(comparisons),
    )  # fmt: skip


def start_training(
    flags: Sequence[str], steps: int, run_dir: Path, caches: dict[str, str], threads: int | None
) -> Started:
    """Run ``fastdhm train`` for some steps and watch its log."""
    more = ["--max-steps", str(steps), "--log-every", "1", "--run-dir", str(run_dir)]
    command = [sys.executable, "-m", "fastdhm", "train", *flags, *more]
    return watch(command, run_dir / "log.jsonl", steps, caches, threads)


def start_reference(arguments: Sequence[str], folder: Path, caches: dict[str, str], threads: int | None) -> Started:
    """Run the reference for some steps and watch its log."""
    folder.mkdir()
    log = folder / "log.jsonl"
    command = [sys.executable, "-m", "fastdhm.benchmarks.reference_run", str(log), *arguments]
    return watch(command, log, int(arguments[0]), caches, threads)


def watch(command: Sequence[str], log: Path, steps: int, caches: dict[str, str], threads: int | None) -> Started:
    """Run a command to its end; when each row of a step appeared in its log."""
    environment = os.environ | caches | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        step_seconds: list[float] = []
        rows: list[dict] = []
        while True:
            ended = process.poll() is not None
            now, rows = time.perf_counter() - start, _rows(log)
            taken = sum(row["kind"] == "step" for row in rows)
            step_seconds += [now] * (taken - len(step_seconds))
            if ended:
                break
            time.sleep(POLL_SECONDS)
        output.seek(0)
        last = output.read().decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
    if process.returncode:
        return Started([], f"it ended with status {process.returncode}: {last[0][:200]}")
    if len(step_seconds) != steps:
        return Started([], f"its log has {len(step_seconds)} steps, must have {steps}")
    told = [row["startup_seconds"] for row in rows if "startup_seconds" in row]
    return Started([*(told or step_seconds)[:1], *step_seconds[1:]])


def _rows(log: Path) -> list[dict]:
    """The whole rows of a log that is being written."""
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _comparison(label: str, started: dict[str, list[Started]], seconds) -> Comparison:
    results = {}
    for name, runs in started.items():
        failure = next((run.failure for run in runs if run.failure), None)
        samples_ms = [] if failure else [1e3 * seconds(run) for run in runs]
        results[name] = Result(failure=failure, calls_per_sample=1, samples_ms=samples_ms, peak_bytes=None)
    return Comparison(label=label, results=results)


def _answer(comparisons: Sequence[Comparison]) -> dict[str, float | None]:
    """Seconds at the median, of both moments and every kind of run, and the speedup to the first step, warm."""
    answer: dict[str, float | None] = {}
    for moment, comparison in zip(("first_step", "full_speed"), comparisons, strict=True):
        for name in comparison.results:
            time_ms = comparison.time_ms(name)
            answer[f"{name}_{moment}_s"] = time_ms.median / 1e3 if time_ms else None
    speedup = comparisons[0].ratio("reference", "warm")
    return answer | {"speedup": speedup.median if speedup else None}


def _marks(comparison: Comparison) -> list[report.Mark]:
    times = {name: comparison.time_ms(name) for name in comparison.results}
    return [
        report.Mark(
            name=name, where=comparison.label, unit="s",
            value=harness.Spread(*(value / 1e3 for value in (time_ms.median, time_ms.low, time_ms.high))),
        )
        for name, time_ms in times.items() if time_ms
    ]  # fmt: skip
