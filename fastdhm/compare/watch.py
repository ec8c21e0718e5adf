"""What a person sees of runs that other processes train: a line for each, read from its log, and the time left."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TimeElapsedColumn

from fastdhm.compare.jobs import Job, share_at, share_done, time_left
from fastdhm.engine.saved.record import last_row
from fastdhm.errors import counted
from fastdhm.system.console import Console, every, words

LOOK_SECONDS = 1.0  # between two looks at the logs
PLAIN_LINES_SECONDS = 60  # between two lines for a run, where none can be drawn over


@dataclass
class Seen:
    """A run that is being trained."""

    job: Job
    where: str
    task: TaskID
    since: float
    share: float
    """What was done when it began."""


class Watch:
    """Lines for the runs that are at work among ``jobs``, of which ``at_once`` can be."""

    def __init__(self, console: Console, jobs: list[Job], at_once: int):
        self.console, self.at_once = console, at_once
        self.jobs, self.seen = {job.name: job for job in jobs}, dict[str, Seen]()
        self.progress = Progress(
            words("{task.description}"), BarColumn(bar_width=20), words("{task.fields[numbers]}"),
            TimeElapsedColumn(), console=console, refresh_per_second=2, disable=not console.live,
        )  # fmt: skip
        self.all = self.progress.add_task("all", total=len(jobs), numbers="")
        self.is_time_to_look, self.is_time_for_lines = every(LOOK_SECONDS), every(PLAIN_LINES_SECONDS)

    def __enter__(self) -> "Watch":
        self.progress.start()
        self._show_all()
        return self

    def __exit__(self, *_: object) -> None:
        for seen in self.seen.values():
            self.progress.remove_task(seen.task)
        self.progress.stop()

    def print(self, text: str, style: str | None = None) -> None:
        """Print above the lines."""
        self.progress.console.print(text, style=style)

    def begun(self, job: Job, where: str) -> None:
        """A run is at work, or waits for it, on ``where``."""
        task = self.progress.add_task(job.name, total=1.0, numbers=where)
        self.seen[job.name] = Seen(job, where, task, time.monotonic(), share_done(job))
        self.print(f"{job.name}: {'goes on' if job.resumable else 'begins'} ({where})")

    def move(self, name: str, where: str) -> None:
        """A run is at another place, or in another state, than before."""
        seen = self.seen[name]
        if where != seen.where:
            seen.where, seen.since, seen.share = where, time.monotonic(), share_at(self.jobs[name], self.epochs(name))
            self.print(f"{name}: {where}")

    def ended(self, name: str) -> Job:
        """A run is at work no longer; returns it as it is now."""
        seen = self.seen.pop(name)
        self.progress.remove_task(seen.task)
        self.jobs[name] = job = seen.job.again()
        if not job.open:
            minutes = (time.monotonic() - seen.since) / 60
            failed = job.state.status == "failed"
            how = f"failed: {job.state.failure}" if failed else f"finished in {minutes:.1f} min"
            self.print(f"{name}: {how} ({self._all()})", style="red" if failed else None)
        self._show_all()
        return job

    def look(self) -> None:
        """Show how far the runs are, if it is time for it."""
        if not self.is_time_to_look():
            return
        lines = self.is_time_for_lines() and not self.console.live
        for name, seen in self.seen.items():
            row = last_row(seen.job.folder)
            text = f"{seen.where}  {_numbers(row, seen.job)}"
            epochs = float(row.get("epoch", seen.job.state.epochs))
            state = dataclasses.replace(self.jobs[name].state, epochs=epochs)
            self.jobs[name] = dataclasses.replace(self.jobs[name], state=state)
            self.progress.update(seen.task, completed=share_at(seen.job, epochs), numbers=text)
            if lines:
                self.print(f"{name}: {text}")
        if lines:
            self.print(self._all())
        self._show_all()

    def epochs(self, name: str) -> float:
        return self.jobs[name].state.epochs

    def _paces(self) -> dict[str, float]:
        """Seconds that a whole run of an arm takes, by those at work."""
        paces = {}
        for name, seen in self.seen.items():
            gained = share_at(seen.job, self.epochs(name)) - seen.share
            if gained > 0:
                paces[seen.job.arm.name] = (time.monotonic() - seen.since) / gained
        return paces

    def _all(self) -> str:
        jobs = list(self.jobs.values())
        done, left = sum(not job.open for job in jobs), time_left(jobs, self.at_once, self._paces())
        return f"{done} of {counted(len(jobs), 'run')} done{f', {left} left' if left and done < len(jobs) else ''}"

    def _show_all(self) -> None:
        done = sum(not job.open for job in self.jobs.values())
        self.progress.update(self.all, completed=done, numbers=self._all())


def _numbers(row: dict[str, Any], job: Job) -> str:
    """How far a run is by the last ``row`` of its log, and at which loss and speed."""
    if not row:
        return "starting"
    parts = [f"epoch {row['epoch']:.2f}/{job.config.epochs}"]
    parts += [f"loss {row['loss']:.3f}"] if "loss" in row else []
    return "  ".join([*parts, *([f"{row['images_per_s']:,.0f} img/s"] if "images_per_s" in row else [])])
