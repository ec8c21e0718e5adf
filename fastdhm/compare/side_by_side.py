"""Runs of a comparison side by side on this machine: each a process of its own, with a GPU or a share of the cores."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdhm.compare.jobs import Job, chosen, find_jobs
from fastdhm.compare.plan import Comparison
from fastdhm.compare.runner import Ended, HowToReport, update_results
from fastdhm.compare.runs import COMPANY
from fastdhm.compare.watch import Watch
from fastdhm.errors import UserError, counted
from fastdhm.system import processors
from fastdhm.system.console import Console
from fastdhm.system.paths import shown
from fastdhm.system.signals import stop_signals
from fastdhm.system.waiting import POLL_S, limit_s

LOGS = "logs"  # in the folder of a comparison: what its runs print
PARENT = "FASTDHM_PARENT"  # the variable that names the process without which a run stops


@dataclass
class Running:
    """A run in its process."""

    job: Job
    place: int
    process: subprocess.Popen
    log: Path
    begins: int
    """Where its output begins in the log."""


def how_many(text: str, jobs: list[Job]) -> int:
    """How many runs at once ``--jobs`` asks for; ``auto``: one a GPU, else one a processor.

    Raises:
        ValueError: no such number, or more than there are GPUs.
    """
    gpus = torch.cuda.device_count() if any(_kind(job) == "cuda" for job in jobs) else 0
    if text == "auto":
        return min(len(jobs), gpus or processors.count())
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"jobs is {text}: must be a number of runs at once, such as 2, or auto")
    number, named = int(text), [job.config.device for job in jobs if ":" in job.config.device]
    if number > 1 and named:
        raise UserError(f"device is {named[0]} for {number} runs at once: say cuda, and each takes a GPU of its own")
    if number > gpus > 0:
        raise UserError(f"jobs is {number}, and torch sees {counted(gpus, 'GPU')} here: start one run a GPU at most")
    return number


def _kind(job: Job) -> str:
    """On what a run computes: cpu or cuda."""
    name = job.as_begun().device.partition(":")[0]
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def own_place(number: int, of: int, kind: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the process in place ``number`` ``of`` so many has in its environment beside this one's.

    The number of threads depends on nothing but ``of``, so that a resumed run has it again, and with it the same bits.
    """
    threads = processors.asked(environ) or max(1, processors.count() // of)
    own = {"OMP_NUM_THREADS": str(threads), PARENT: str(os.getpid()), COMPANY: f"up to {of} at once"}
    if kind == "cuda":  # each sees its own alone: as the first, it has the same name everywhere
        seen = environ.get("CUDA_VISIBLE_DEVICES", "")
        names = seen.split(",") if seen else [str(n) for n in range(of)]
        own["CUDA_VISIBLE_DEVICES"] = names[number].strip()
    return own


def command(folder: Path, name: str, how: HowToReport, device: str | None = None) -> list[str]:
    """The command that trains one run, and writes the results so far."""
    report = ["--score", how.score, "--confidence", str(how.confidence)]
    where = ["--device", device] if device else []
    return [sys.executable, "-m", "fastdhm", "compare", "--resume", str(folder), "--only", name, *report, *where]


def side_by_side(
    comparison: Comparison, folder: Path, how: HowToReport, console: Console, at_once: int, only: Sequence[str] = ()
) -> Ended:
    """Train all runs that are not done, or ``only`` those named, ``at_once`` of them; each writes the results.

    A signal stops all of them, each saves. One that breaks off, whatever ends it, does not take the others with it.
    """
    jobs = chosen(find_jobs(comparison, folder), only)
    update_results(folder, how, console)
    (folder / LOGS).mkdir(exist_ok=True)
    waiting, free = deque(job for job in jobs if job.open), list(range(at_once))
    running: list[Running] = []
    broken: list[str] = []
    elsewhere: list[str] = []
    each = counted(int(own_place(0, at_once, "cpu")["OMP_NUM_THREADS"]), "thread")
    console.print(
        f"{counted(len(waiting), 'run')} to train, {at_once} at once with {each} each; what they print is in "
        f"{shown(folder / LOGS)}"
    )
    with stop_signals() as stopped, Watch(console, jobs, at_once) as watch:
        try:
            while running or (waiting and not stopped()):
                while waiting and free and not stopped():
                    running.append(_start(waiting.popleft(), folder, how, free.pop(0), at_once))
                    watch.begun(running[-1].job, _where(running[-1]))
                time.sleep(POLL_S / 5)
                for run in [run for run in running if run.process.poll() is not None]:
                    running.remove(run)
                    free = sorted([*free, run.place])
                    if watch.ended(run.job.name).open and not stopped():
                        (elsewhere if run.process.returncode == 0 else broken).append(_why(run))
                        watch.print(_why(run), style="yellow")
                watch.look()
                if stopped():
                    _stop(running, watch)
                    break
        finally:
            for run in running:
                run.process.kill()
                run.process.wait()
    number = stopped()
    if any(job.again().open for job in jobs):
        update_results(folder, how, console)  # what was killed did not
    return Ended(number, tuple(broken), tuple(elsewhere))


def log_of(folder: Path, name: str) -> Path:
    """What the process of a run prints."""
    return folder / LOGS / f"{name}.log"


def _start(job: Job, folder: Path, how: HowToReport, number: int, of: int) -> Running:
    path, kind = log_of(folder, job.name), _kind(job)
    with open(path, "ab") as log:
        begins = log.tell()
        process = subprocess.Popen(
            command(folder, job.name, how, kind), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=os.environ | own_place(number, of, kind), start_new_session=True,  # Ctrl-C reaches it through us alone
        )  # fmt: skip
        return Running(job, number, process, path, begins)


def _where(run: Running) -> str:
    return f"GPU {run.place}" if _kind(run.job) == "cuda" else "CPU"


def _stop(running: list[Running], watch: Watch) -> None:
    """Have all runs save and end; what has not ended after the longest wait is killed."""
    watch.print(f"stopping {counted(len(running), 'run')}, each saves; once more ends them at once")
    for run in running:
        run.process.terminate()
    end = time.monotonic() + limit_s()
    for run in running:
        while run.process.poll() is None and time.monotonic() < end:
            time.sleep(POLL_S / 5)
            watch.look()


def _why(run: Running) -> str:
    """Why a run ended before its end, from its exit status and what it said last."""
    status = run.process.returncode
    if status < 0:
        memory = ", perhaps because memory ran out: try fewer --jobs" * (status == -signal.SIGKILL)
        return f"{run.job.name} was killed by {signal.Signals(-status).name}{memory}"
    return f"{run.job.name} is not finished: {said_last(run.log, run.begins)} (see {shown(run.log)})"


def said_last(log: Path, begins: int = 0) -> str:
    """The last line of an error in a log, or its last line, from ``begins`` on."""
    text = log.read_bytes()[begins:].decode("utf-8", "replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.partition("error: ")[2] for line in lines if line.startswith("fastdhm: ") and "error: " in line]
    told += [line for line in lines if line.startswith("left to another: ")]
    return (told or lines or ["it printed nothing"])[-1]
