"""A comparison from its settings to its results, and its runs one by one; can be killed and called again."""

import dataclasses
import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fastdhm import __version__
from fastdhm.compare.directory import SETTINGS, check_settings, read_settings, write_settings
from fastdhm.compare.jobs import Job, chosen, find_jobs, time_left
from fastdhm.compare.plan import Comparison
from fastdhm.compare.report import print_results, write_results
from fastdhm.compare.results import Results
from fastdhm.compare.runs import COMPANY, record_company, record_failure
from fastdhm.config import TrainConfig
from fastdhm.engine.build import open_data
from fastdhm.engine.device import give_back_freed_memory
from fastdhm.engine.reid import NonFiniteFeatures
from fastdhm.engine.saved.checkpoint import HOW_IT_RUNS, RESUMABLE
from fastdhm.engine.saved.judged import in_epochs
from fastdhm.engine.settle import settle
from fastdhm.engine.sums import NonFiniteLoss
from fastdhm.engine.train import train
from fastdhm.errors import UserError, counted, unknown
from fastdhm.system.console import Console, paste
from fastdhm.system.folders import AtWork, held


@dataclass(frozen=True, kw_only=True)
class HowToReport:
    """How results are reported."""

    score: Literal["auto", "last", "best"] = "auto"
    """Which epoch of each run counts, see ``Results.score``."""
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.score not in ("auto", "last", "best"):
            raise unknown("score", self.score, ("auto", "last", "best"))
        if not 0 < self.confidence <= 0.9999:
            raise UserError(f"confidence is {self.confidence}: must be above 0 and at most 0.9999, such as 0.95")


@dataclass(frozen=True)
class Ended:
    """How the making of runs ended."""

    number: int | None = None
    """The signal that stopped it."""
    broken: tuple[str, ...] = ()
    """Runs that ended before their end, and why; the same command goes on with them."""
    elsewhere: tuple[str, ...] = ()
    """Runs that another process is at work on."""
    go_on: str | None = None
    """The command that goes on with what is left, where that is not simply --resume."""


Make = Callable[[Comparison, Path, HowToReport, Console], Ended]


def ready(
    comparison: Comparison, folder: Path, only: Sequence[str] = (), *, elsewhere: bool = False
) -> tuple[Comparison, list[Job]]:
    """The comparison settled, and its runs in ``folder``, or ``only`` those named; nothing is written.

    Where they run ``elsewhere``, what this machine has does not count.

    Raises:
        ValueError: a mistake of the user, such as a folder that holds something else or has other settings.
    """
    comparison = settled(comparison, elsewhere=elsewhere)
    check_settings(folder, comparison)
    return comparison, chosen(find_jobs(comparison, folder), only)


def compare(
    comparison: Comparison,
    jobs: list[Job],
    folder: Path,
    how: HowToReport,
    console: Console,
    make: Make,
    only: Sequence[str] = (),
    *,
    elsewhere: bool = False,
) -> int:
    """Train those of ``jobs``, see :func:`ready`, that are not finished, as ``make`` does.

    Other commands may work on other runs of the folder: it is held only while its settings or results are written.

    Returns:
        The exit status: 128 + N if signal N stopped it, 1 if a run failed or broke off, else 0.

    Raises:
        ValueError: ``fastdhm train`` would refuse a run; found before training.
    """
    if any(job.open for job in jobs) and not any(job.state.rows for job in jobs) and not only:
        _check_data(comparison, console, elsewhere)
    for note in () if only else comparison.notes:
        console.print(f"note: {note}")
    with holding(folder, console):
        check_settings(folder, comparison)  # another command may have been faster
        _write_settings(folder, comparison, any(job.open for job in jobs), only)
    try:
        ended = make(comparison, folder, how, console)
    except KeyboardInterrupt as stopped:  # between two runs
        ended = Ended(getattr(stopped, "number", signal.SIGINT))
    go_on = ended.go_on or paste("fastdhm", "compare", "--resume", folder)
    if ended.number:
        console.print("stopped" if COMPANY in os.environ else f"stopped; continue with: {go_on}")
        return 128 + ended.number
    results = collect(read_settings(folder), folder, how)
    if not only:
        print_results(console, results)
    for line in (*ended.broken, *ended.elsewhere):
        console.print(line, style="yellow")
    if ended.broken:
        console.print(f"go on with what broke off: {go_on}")
    console.print(f"the results are in {folder}: see README.md there")
    return 1 if results.failed or ended.broken else 0


def holding(folder: Path, console: Console) -> AbstractContextManager[None]:
    """Inside, no other command writes the settings or the results of the comparison in ``folder``."""
    return held(folder, "`fastdhm compare`", console.print, wait=True)


def _write_settings(folder: Path, comparison: Comparison, to_train: bool, only: Sequence[str]) -> None:
    """Keep what is compared, and by which versions; a command for some of its runs changes nothing else of it."""
    there = read_settings(folder) if (folder / SETTINGS).exists() else None
    this = f"fastdhm {__version__} with torch {torch.__version__}"
    before = there.made_by if there else ()
    made_by = tuple(dict.fromkeys([*before, *([this] * to_train)]))
    new = dataclasses.replace(there if there and only else comparison, made_by=made_by)
    if new != there:
        write_settings(folder, new)


def settled(comparison: Comparison, *, elsewhere: bool = False) -> Comparison:
    """The comparison with names checked and paths absolute; choices of the machine (device, loader) stay open."""
    arms = []
    for arm in comparison.arms:
        config = settle(_anywhere(arm.config) if elsewhere else arm.config)
        free = {name: getattr(arm.config, name) for name in RESUMABLE if name != "data_dir"}
        arms.append(dataclasses.replace(arm, config=dataclasses.replace(config, run_dir=None, seed=0, **free)))
    return dataclasses.replace(comparison, arms=tuple(arms))


def _anywhere(config: TrainConfig) -> TrainConfig:
    """``config`` with the usual choices of the machine, which suit every machine."""
    usual = TrainConfig()
    return dataclasses.replace(
        config, **{name: getattr(usual, name) for name in HOW_IT_RUNS if name not in ("data_dir", "grad_cosine")}
    )


def collect(comparison: Comparison, folder: Path, how: HowToReport) -> Results:
    """The results of the runs so far."""
    states = tuple(job.state for job in find_jobs(comparison, folder))
    return Results(comparison, states, how.score, how.confidence)


def update_results(folder: Path, how: HowToReport, console: Console) -> Results:
    """Write the results so far, of all methods and seeds that the folder has by now."""
    with holding(folder, console):
        results = collect(read_settings(folder), folder, how)
        write_results(folder, results)
    return results


def report(comparison: Comparison, folder: Path, how: HowToReport, console: Console) -> int:
    """Write and print the results so far, without training."""
    read_settings(folder)  # refuses a folder without a comparison
    results = collect(settled(comparison), folder, how)
    print_results(console, results)
    try:
        with holding(folder, console):
            write_results(folder, results)
    except (OSError, UserError) as error:  # another user's folder, or a read-only disk
        console.print(f"printed but not written: {error}")
    return 1 if results.failed else 0


def dry_run(comparison: Comparison, jobs: list[Job], folder: Path, console: Console, at_once: int = 1) -> None:
    """Print the runs that would be trained, ``at_once`` of them, and the state of each; writes nothing."""
    console.print(f"{comparison.title}: {counted(len(jobs), 'run')} in {folder}")
    for note in comparison.notes:
        console.print(f"note: {note}")
    width = max(len(job.name) for job in jobs)
    for job in jobs:
        config, state = job.config, job.state
        status = {"missing": "to do", "failed": f"failed: {state.failure}"}.get(state.status, state.status)
        if state.status == "begun":
            status = f"begun, {in_epochs(state.epochs)} of {counted(config.epochs, 'epoch')}"
        what = f"{config.dataset}, {config.arch}, {config.method}, {counted(config.epochs, 'epoch')}"
        console.print(f"  {job.name:{width}}  {status}  ({what})")
    done = sum(job.state.status in ("finished", "failed") for job in jobs)
    left = time_left(jobs, at_once)
    side_by_side = f", {at_once} at once" * (at_once > 1)
    console.print(f"done: {done} of {len(jobs)}{f', {left} left{side_by_side}' if left else ''}")


def one_by_one(
    comparison: Comparison, folder: Path, how: HowToReport, console: Console, only: Sequence[str] = ()
) -> Ended:
    """Train all runs that are not done, or ``only`` those named, in this process; the results are written after each.

    A run that another process is at work on is left to it.
    """
    jobs = chosen(find_jobs(comparison, folder), only)
    if not only:
        update_results(folder, how, console)
    queue, busy = deque(jobs), dict[str, tuple[Job, str]]()
    while queue:
        job = queue.popleft()
        if not job.again().open:
            continue
        left = time_left([other.again() for other in jobs])
        words = [f"run {jobs.index(job) + 1} of {len(jobs)}: {job.arm.label}", f"seed {job.seed}"]
        console.rule(", ".join([*words, *([f"{left} left"] * bool(left))]))
        try:
            number = _make_run(job, console)
        except AtWork as error:
            busy[job.name] = job, f"left to another: {error}"
            console.print(busy[job.name][1])
            continue
        if number:
            return Ended(number)
        update_results(folder, how, console)
        queue.extend(other for other, _ in busy.values())  # it may have been stopped meanwhile
        busy.clear()
    return Ended(elsewhere=tuple(why for job, why in busy.values() if job.again().open))


def _make_run(job: Job, console: Console) -> int | None:
    """Begin or resume a run; returns the number of a signal that stops it.

    A loss or features that are not finite are recorded as the failure of the run.
    """
    gc.collect()  # or garbage of the run before would count as memory of this one
    give_back_freed_memory()
    try:
        # a signal at the very end of a run stops the others, too
        return train(job.as_begun(), resume=job.resumable, console=console).signal
    except (NonFiniteLoss, NonFiniteFeatures) as error:
        record_failure(job.folder, str(error))
        console.print(f"failed: {error}", style="red")
        return None
    finally:
        record_company(job.folder, os.environ.get(COMPANY, ""))


def _check_data(comparison: Comparison, console: Console, elsewhere: bool) -> None:
    """Open each arm's images before anything is written, to report a wrong path or batch size at once."""
    seen = set()
    for arm in comparison.arms:
        config = settle(dataclasses.replace(_anywhere(arm.config) if elsewhere else arm.config, run_dir=None))
        key = (config.dataset, config.batch_size, config.image_size, config.crop, config.subset, config.hold_out)
        if key not in seen:
            open_data(config, console).close()
            seen.add(key)
