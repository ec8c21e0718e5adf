"""Trains the runs of a comparison one by one, and writes the results after each; can be killed and called again."""

import dataclasses
import gc
import math
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from fastdhm import __version__
from fastdhm.compare.arms import Arm
from fastdhm.compare.directory import SETTINGS, check_settings, read_settings, run_folder, write_settings
from fastdhm.compare.plan import Comparison
from fastdhm.compare.report import print_results, write_results
from fastdhm.compare.results import Results
from fastdhm.compare.runs import RunState, read_run, record_failure
from fastdhm.config import TrainConfig
from fastdhm.data.loaders.crops import height_width
from fastdhm.engine.build import open_data
from fastdhm.engine.device import give_back_freed_memory
from fastdhm.engine.optim.schedule import full_size_steps
from fastdhm.engine.reid import NonFiniteFeatures
from fastdhm.engine.saved.checkpoint import HOW_IT_RUNS, RESUMABLE, read_config
from fastdhm.engine.saved.names import CONFIG
from fastdhm.engine.settle import settle
from fastdhm.engine.sums import NonFiniteLoss
from fastdhm.engine.train import train
from fastdhm.errors import UserError, counted, unknown
from fastdhm.system.console import Console, paste
from fastdhm.system.folders import held


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
class Job:
    """A run of a comparison, trained or not."""

    arm: Arm
    seed: int
    folder: Path
    config: TrainConfig
    state: RunState


def compare(comparison: Comparison, folder: Path, how: HowToReport, console: Console) -> int:
    """Train every run of ``comparison`` that is not finished, in ``folder``.

    Returns:
        The exit status: 128 + N if signal N stopped it, 1 if a run failed, else 0.

    Raises:
        ValueError: a mistake of the user, found before training: the folder holds something else or has other settings,
            or ``fastdhm train`` would refuse a run.
    """
    comparison = settled(comparison)
    check_settings(folder, comparison)
    jobs = find_jobs(comparison, folder)
    to_train = any(job.state.status in ("missing", "begun") for job in jobs)
    if to_train and not any(job.state.rows for job in jobs):
        _check_data(comparison, console)
    comparison = dataclasses.replace(comparison, made_by=_made_by(folder, to_train))
    for note in comparison.notes:
        console.print(f"note: {note}")
    with held(folder, "`fastdhm compare`", console.print):
        write_settings(folder, comparison)
        try:
            number = _make_runs(comparison, folder, how, console)
        except KeyboardInterrupt as stopped:  # between two runs
            number = getattr(stopped, "number", signal.SIGINT)
    if number:
        console.print(f"stopped; continue with: {paste('fastdhm', 'compare', '--resume', folder)}")
        return 128 + number
    results = collect(comparison, folder, how)
    print_results(console, results)
    console.print(f"the results are in {folder}: see README.md there")
    return 1 if results.failed else 0


def _made_by(folder: Path, to_train: bool) -> tuple[str, ...]:
    """The versions that trained the runs in ``folder``, and this version if it will train, too."""
    before = read_settings(folder).made_by if (folder / SETTINGS).exists() else ()
    this = f"fastdhm {__version__} with torch {torch.__version__}"
    return tuple(dict.fromkeys([*before, *([this] * to_train)]))


def settled(comparison: Comparison) -> Comparison:
    """The comparison with names checked and paths absolute; choices of the machine (device, loader) stay open."""
    arms = []
    for arm in comparison.arms:
        config = settle(arm.config)
        free = {name: getattr(arm.config, name) for name in RESUMABLE if name != "data_dir"}
        arms.append(dataclasses.replace(arm, config=dataclasses.replace(config, run_dir=None, seed=0, **free)))
    return dataclasses.replace(comparison, arms=tuple(arms))


def find_jobs(comparison: Comparison, folder: Path) -> list[Job]:
    """All runs, seed by seed, so that an interrupted comparison has pairs.

    Raises:
        ValueError: the folder of a run holds one with other settings.
    """
    jobs = []
    for seed in comparison.seeds:
        for arm in comparison.arms:
            path = run_folder(folder, arm, seed)
            config = dataclasses.replace(arm.config, seed=seed, run_dir=str(path))
            jobs.append(Job(arm, seed, path, config, read_run(path, arm, seed, config)))
    return jobs


def collect(comparison: Comparison, folder: Path, how: HowToReport) -> Results:
    """The results of the runs so far."""
    states = tuple(job.state for job in find_jobs(comparison, folder))
    return Results(comparison, states, how.score, how.confidence)


def report(comparison: Comparison, folder: Path, how: HowToReport, console: Console) -> int:
    """Write and print the results so far, without training."""
    read_settings(folder)  # refuses a folder without a comparison
    results = collect(settled(comparison), folder, how)
    print_results(console, results)
    try:
        write_results(folder, results)
    except (OSError, UserError) as error:  # another user's folder, or a read-only disk
        console.print(f"printed but not written: {error}")
    return 1 if results.failed else 0


def dry_run(comparison: Comparison, folder: Path, console: Console) -> None:
    """Print the runs that would be trained, and the state of each; writes nothing."""
    comparison = settled(comparison)
    check_settings(folder, comparison)
    jobs = find_jobs(comparison, folder)
    console.print(f"{comparison.title}: {counted(len(jobs), 'run')} in {folder}")
    for note in comparison.notes:
        console.print(f"note: {note}")
    width = max(len(job.folder.name) for job in jobs)
    for job in jobs:
        config, state = job.config, job.state
        status = {"missing": "to do", "failed": f"failed: {state.failure}"}.get(state.status, state.status)
        if state.status == "begun":
            status = f"begun, {state.epochs:g} of {counted(config.epochs, 'epoch')}"
        what = f"{config.dataset}, {config.arch}, {config.method}, {counted(config.epochs, 'epoch')}"
        console.print(f"  {job.folder.name:{width}}  {status}  ({what})")
    done = sum(job.state.status in ("finished", "failed") for job in jobs)
    left = time_left(jobs)
    console.print(f"done: {done} of {len(jobs)}{f', {left} left' if left else ''}")


def _make_runs(comparison: Comparison, folder: Path, how: HowToReport, console: Console) -> int | None:
    """Train all runs that are not done, and write the results after each; the number of a signal that stops it."""
    jobs = find_jobs(comparison, folder)
    write_results(folder, collect(comparison, folder, how))
    for index, job in enumerate(jobs):
        if job.state.status in ("finished", "failed"):
            continue
        left = time_left(find_jobs(comparison, folder))
        words = [
            f"run {index + 1} of {len(jobs)}: {job.arm.label}",
            f"seed {job.seed}",
            *([f"{left} left"] * bool(left)),
        ]
        console.rule(", ".join(words))
        number = _make_run(job, console)
        if number:
            return number
        write_results(folder, collect(comparison, folder, how))
    return None


def _make_run(job: Job, console: Console) -> int | None:
    """Begin or resume a run; returns the number of a signal that stops it.

    A loss or features that are not finite are recorded as the failure of the run.
    """
    gc.collect()  # or garbage of the run before would count as memory of this one
    give_back_freed_memory()
    resume = (job.folder / CONFIG).exists()
    config = _as_before(job.config, read_config(job.folder)) if resume else job.config
    try:
        # a signal at the very end of a run stops the others, too
        return train(config, resume=resume, console=console).signal
    except (NonFiniteLoss, NonFiniteFeatures) as error:
        record_failure(job.folder, str(error))
        console.print(f"failed: {error}", style="red")
        return None


def _as_before(config: TrainConfig, before: TrainConfig) -> TrainConfig:
    """``config`` with the machine's choices from when the run began, unless the user chooses otherwise now."""
    usual = TrainConfig()
    kept: dict[str, Any] = {
        name: getattr(before, name) for name in HOW_IT_RUNS if getattr(config, name) == getattr(usual, name)
    }
    return dataclasses.replace(config, **kept)


def _check_data(comparison: Comparison, console: Console) -> None:
    """Open each arm's images before anything is written, to report a wrong path or batch size at once."""
    seen = set()
    for arm in comparison.arms:
        config = settle(dataclasses.replace(arm.config, run_dir=None))
        key = (config.dataset, config.batch_size, config.image_size, config.crop, config.subset, config.hold_out)
        if key not in seen:
            open_data(config, console).close()
            seen.add(key)


def share_done(job: Job) -> float:
    """The share of a run's work that is done; later epochs may have larger images."""
    config, side = job.config, min(height_width(job.config.image_size))
    per_epoch = 1000  # any number of steps gives the same share
    work = partial(full_size_steps, run_steps=config.epochs * per_epoch, side=side, progressive=config.progressive)
    return min(1.0, work(int(job.state.epochs * per_epoch)) / work(config.epochs * per_epoch))


def time_left(jobs: list[Job]) -> str | None:
    """An estimate of the time for the other runs: each takes as long as a finished run of its arm, or the slowest."""
    seconds: dict[str, float] = {}
    for job in jobs:
        if job.state.status == "finished" and job.state.train_seconds is not None:
            seconds[job.arm.name] = job.state.train_seconds + job.state.val_seconds
    if not seconds:
        return None
    slowest = max(seconds.values())
    left = sum(
        seconds.get(job.arm.name, slowest) * (1 - share_done(job))
        for job in jobs
        if job.state.status in ("missing", "begun")
    )
    unknown = any(job.arm.name not in seconds for job in jobs if job.state.status in ("missing", "begun"))
    hours, minutes = divmod(math.ceil(left / 60), 60)
    return ("very roughly " if unknown else "about ") + (f"{hours} h {minutes} min" if hours else f"{minutes} min")
