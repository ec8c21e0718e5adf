"""The runs of a comparison as work: which are left, what a run goes on with, and how long all of them will take."""

import dataclasses
import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastdhm.compare.arms import Arm
from fastdhm.compare.directory import run_folder
from fastdhm.compare.plan import Comparison
from fastdhm.compare.runs import RunState, read_run
from fastdhm.config import TrainConfig
from fastdhm.data.loaders.crops import height_width
from fastdhm.engine.optim.schedule import full_size_steps
from fastdhm.engine.saved.checkpoint import HOW_IT_RUNS, read_config
from fastdhm.engine.saved.names import CONFIG
from fastdhm.errors import UserError, unknown


@dataclass(frozen=True)
class Job:
    """A run of a comparison, trained or not."""

    arm: Arm
    seed: int
    folder: Path
    config: TrainConfig
    state: RunState

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def open(self) -> bool:
        """Whether it is still to be trained, or to be finished."""
        return self.state.status in ("missing", "begun")

    @property
    def resumable(self) -> bool:
        return (self.folder / CONFIG).exists()

    def as_begun(self) -> TrainConfig:
        """Its config, with the machine's choices from when it began unless the user chooses otherwise now."""
        if not self.resumable:
            return self.config
        before, usual = read_config(self.folder), TrainConfig()
        kept: dict[str, Any] = {
            name: getattr(before, name)
            for name in HOW_IT_RUNS
            if getattr(self.config, name) == getattr(usual, name)
        }  # fmt: skip
        return dataclasses.replace(self.config, **kept)

    def again(self) -> "Job":
        """The job as its folder is now."""
        return dataclasses.replace(self, state=read_run(self.folder, self.arm, self.seed, self.config))


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


def chosen(jobs: list[Job], only: Iterable[str]) -> list[Job]:
    """Those of ``jobs`` that ``only`` names; all if it names none."""
    names = {job.name: job for job in jobs}
    for name in only:
        if name not in names:
            raise unknown("run", name, names)
    return [names[name] for name in only] or jobs


def share_at(job: Job, epochs: float) -> float:
    """The share of a run's work that is done after so many epochs; later epochs may have larger images."""
    config, side = job.config, min(height_width(job.config.image_size))
    per_epoch = 1000  # any number of steps gives the same share
    work = partial(full_size_steps, run_steps=config.epochs * per_epoch, side=side, progressive=config.progressive)
    return min(1.0, work(int(epochs * per_epoch)) / work(config.epochs * per_epoch))


def share_done(job: Job) -> float:
    return share_at(job, job.state.epochs)


def time_left(jobs: list[Job], at_once: int = 1, paces: Mapping[str, float] | None = None) -> str | None:
    """An estimate of the time for the other runs, so many at once.

    Each takes as long as a finished run of its arm, else as ``paces`` say (seconds of a whole run of an arm, from those
    that are running), else as the slowest.
    """
    seconds = dict(paces or {})
    for job in jobs:
        if job.state.status == "finished" and job.state.train_seconds is not None:
            seconds[job.arm.name] = job.state.train_seconds + job.state.val_seconds
    if not seconds:
        return None
    slowest, left = max(seconds.values()), [job for job in jobs if job.open]
    ends = [0.0] * max(1, at_once)  # when each place is free
    for job in left:
        heapq.heapreplace(ends, ends[0] + seconds.get(job.arm.name, slowest) * (1 - share_done(job)))
    roughly = any(job.arm.name not in seconds for job in left)
    hours, minutes = divmod(math.ceil(max(ends) / 60), 60)
    return ("very roughly " if roughly else "about ") + (f"{hours} h {minutes} min" if hours else f"{minutes} min")


def split_names(text: str) -> tuple[str, ...]:
    """``dhm-seed0,dsl-seed0`` as names; ``ValueError`` if there is none."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UserError("only is empty: name runs as --dry-run lists them, such as --only dhm-seed0,dhm-seed1")
    return names
