"""Runs of a comparison as jobs of SLURM, by submitit: submitted once, found again, and waited for."""

import getpass
import io
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdhm.compare.jobs import Job, chosen, find_jobs
from fastdhm.compare.plan import Comparison
from fastdhm.compare.runner import Ended, HowToReport, holding, update_results
from fastdhm.compare.runs import COMPANY
from fastdhm.compare.side_by_side import LOGS, PARENT, command, log_of, said_last
from fastdhm.compare.slurm_job import COMPANY as IN_A_JOB
from fastdhm.compare.slurm_job import RunInJob
from fastdhm.compare.watch import Watch
from fastdhm.errors import UserError, counted, first_line
from fastdhm.system.console import Console, paste
from fastdhm.system.files import write_text
from fastdhm.system.paths import shown
from fastdhm.system.signals import stop_signals

JOBS = "jobs.json"  # in the folder of logs: the job of each run that was submitted
POLL_S = {"slurm": 5.0, "local": 0.5}
GONE_S = {"slurm": 20.0, "local": 1.0}  # a job's last files may be seen this late on a network drive
DAY = "1-00:00:00"
NO_LIMIT = 10**6  # minutes; submitit counts an end of time as a failure, and SLURM has the limit anyway
NOTICE_S = 120  # before the end of its time, in which a run saves
SEPARATOR = re.compile(r",(?=[\w-]+=)")


@dataclass(frozen=True)
class Slurm:
    """Where jobs are submitted, and with which options of sbatch."""

    partition: str
    args: str = ""
    at_once: int | None = None

    def options(self) -> dict[str, str]:
        """``time=8:00:00,mem=32G`` as options; ``ValueError`` if it is not of that form."""
        options = {}
        for part in SEPARATOR.split(self.args) if self.args else ():
            name, equals, value = part.partition("=")
            if not (name and equals and value):
                raise UserError(
                    f"slurm_args has {part!r}: write options of sbatch as NAME=VALUE,..., such as time=8:00:00,mem=32G"
                )
            options[name.strip().removeprefix("--").replace("_", "-")] = value
        return options

    @property
    def cluster(self) -> str:
        """slurm, or local: submitit's stand-in on this machine, to try it without a cluster."""
        return self.options().get("cluster", "slurm")

    def again(self, folder: Path) -> str:
        """The command that comes back to the jobs."""
        more = ["--slurm-args", self.args] if self.args else []
        return paste("fastdhm", "compare", "--resume", folder, "--slurm", self.partition, *more)


def submitit() -> Any:
    """The library; ``ValueError`` with what to do if it is not installed."""
    try:
        import submitit
    except ImportError as error:
        raise UserError("submitit, which --slurm needs, is not installed: pip install 'fastdhm[slurm]'") from error
    return submitit


def check(slurm: Slurm) -> None:
    """``ValueError`` if jobs cannot be submitted from this machine."""
    if slurm.cluster not in POLL_S:
        raise UserError(f"slurm_args has cluster={slurm.cluster}: must be slurm or local")
    submitit()
    if slurm.cluster == "slurm":
        _called("sbatch", "--version")


def on_slurm(
    comparison: Comparison, folder: Path, how: HowToReport, console: Console, slurm: Slurm, only: Sequence[str] = ()
) -> Ended:
    """Submit a job for each run that is not done and has none, and wait for all; a signal leaves them running."""
    folder, jobs = folder.absolute(), chosen(find_jobs(comparison, folder.absolute()), only)
    (folder / LOGS).mkdir(exist_ok=True)
    update_results(folder, how, console)
    with holding(folder, console):
        numbers, new = _submitted(folder, [job for job in jobs if job.open], how, slurm)
    console.print(
        f"{counted(len(new), 'job')} submitted, {len(numbers) - len(new)} found from before; what they print is in "
        f"{shown(folder / LOGS)}"
    )
    begins = {name: _size(log_of(folder, name)) if name in new else 0 for name in numbers}
    with stop_signals() as stopped, Watch(console, jobs, slurm.at_once or len(numbers)) as watch:
        broken = _wait(folder, {job.name: job for job in jobs}, numbers, begins, slurm, watch, stopped)
        number = stopped()
    left = [numbers[job.name] for job in jobs if job.name in numbers and job.again().open]
    if number and left:
        cancel = paste("scancel" if slurm.cluster == "slurm" else "kill", *left)
        console.print(f"{counted(len(left), 'job')} left to go on without this command; cancel with: {cancel}")
    return Ended(number, tuple(broken), go_on=slurm.again(folder))


def _wait(
    folder: Path,
    jobs: dict[str, Job],
    numbers: dict[str, str],
    begins: dict[str, int],
    slurm: Slurm,
    watch: Watch,
    stopped: Callable[[], int | None],
) -> list[str]:
    """Show the jobs until all have ended, or a signal comes; returns why runs are not finished.

    ``begins``: where in its log each one's output begins.
    """
    broken: list[str] = []
    for name, number in numbers.items():
        watch.begun(jobs[name], f"job {number}")
    gone = dict.fromkeys(numbers, 0.0)
    while watch.seen and not stopped():
        time.sleep(POLL_S[slurm.cluster])
        states = _states(slurm.cluster, numbers.values())
        for name in list(watch.seen) if states is not None else ():
            assert states is not None
            state = states.get(numbers[name])
            if state:
                gone[name] = 0.0
                watch.move(name, f"job {numbers[name]}, {state}")
                continue
            gone[name] += POLL_S[slurm.cluster]
            late = gone[name] < GONE_S[slurm.cluster] and jobs[name].again().open
            if not late and watch.ended(name).open:
                log = log_of(folder, name)
                last = said_last(log, begins[name])
                broken.append(f"{name}: job {numbers[name]} ended before its run did: {last} (see {shown(log)})")
                watch.print(broken[-1], style="yellow")
        watch.look()
    return broken


def _submitted(folder: Path, jobs: list[Job], how: HowToReport, slurm: Slurm) -> tuple[dict[str, str], list[str]]:
    """The number of the job of each run, and the runs that got one now; the others had one that goes on."""
    path = folder / LOGS / JOBS
    try:
        known = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        known = {}
    states = _states(slurm.cluster, [str(entry["job"]) for entry in known.values()])
    if states is None:
        raise UserError("squeue does not answer, so jobs from before cannot be found: try again later")
    there = {
        job.name: str(known[job.name]["job"])
        for job in jobs
        if job.name in known and known[job.name]["cluster"] == slurm.cluster and str(known[job.name]["job"]) in states
    }
    new = [job for job in jobs if job.name not in there]
    if new:
        numbers = _submit(folder, new, how, slurm)
        known |= {name: {"job": number, "cluster": slurm.cluster} for name, number in numbers.items()}
        write_text(path, json.dumps(known, indent=2) + "\n")
        there |= numbers
    return there, [job.name for job in new]


def _submit(folder: Path, jobs: list[Job], how: HowToReport, slurm: Slurm) -> dict[str, str]:
    """Submit a job for each run, as one array; the number of each."""
    library = submitit()
    kind = library.SlurmExecutor if slurm.cluster == "slurm" else library.LocalExecutor
    variables = {PARENT: "{pid}", COMPANY: IN_A_JOB}
    try:
        executor = kind(folder / LOGS / "submitit", max_num_timeout=NO_LIMIT)
        executor.update_parameters(**_parameters(slurm, jobs, kind))
        with redirect_stderr(io.StringIO()), executor.batch():  # what sbatch says there is in the error, too
            submitted = [
                executor.submit(RunInJob(command(folder, job.name, how), str(log_of(folder, job.name)), variables))
                for job in jobs
            ]
    except (library.core.utils.FailedJobError, ValueError, RuntimeError) as error:
        why = next((line for line in str(error).splitlines() if "error:" in line), first_line(error))
        why = why.rpartition("error: ")[2].strip()
        raise UserError(
            f"SLURM took no jobs ({why}): change --slurm or --slurm-args; runs on CPUs need --device cpu"
        ) from error
    return {job.name: str(one.job_id) for job, one in zip(jobs, submitted, strict=True)}


def _parameters(slurm: Slurm, jobs: list[Job], kind: Any) -> dict[str, Any]:
    """What submitit is told: its own parameters by their names, every other option of sbatch as it is."""
    if slurm.cluster == "local":
        return {"timeout_min": NO_LIMIT}
    options = {"time": DAY} | slurm.options()
    options.pop("cluster", None)
    if not any("gpu" in name or name == "gres" for name in options) and any(j.config.device != "cpu" for j in jobs):
        options["gpus-per-node"] = "1"
    own = kind._valid_parameters() - {"time"}
    parameters: dict[str, Any] = {"partition": slurm.partition, "time": NO_LIMIT, "signal_delay_s": NOTICE_S}
    parameters |= {"job_name": "fastdhm", "array_parallelism": slurm.at_once or len(jobs), "additional_parameters": {}}
    for name, value in options.items():
        into = parameters if name.replace("-", "_") in own else parameters["additional_parameters"]
        into[name.replace("-", "_") if into is parameters else name] = int(value) if value.isdecimal() else value
    if "cpus-per-task" in options:  # from 22.05 on srun does not take it from sbatch
        parameters["srun_args"] = [f"--cpus-per-task={options['cpus-per-task']}"]
    return parameters


def _states(cluster: str, numbers: Collection[str]) -> dict[str, str] | None:
    """The state of each job that waits or runs; None if that cannot be known now.

    squeue is asked, not sacct: many clusters keep no accounts, and others may tell of an older job of that number.
    """
    if cluster == "local":
        return {number: "RUNNING" for number in numbers if _lives(number)}
    if not numbers:
        return {}
    try:
        listed = _called("squeue", "-r", "-h", "-u", getpass.getuser(), "-o", "%i|%T|%r")
    except UserError:
        return None
    found = (line.split("|") for line in listed.splitlines() if line.count("|") == 2)
    return {number: f"{state} ({why})" if state == "PENDING" else state for number, state, why in found}


def _called(*words: str) -> str:
    """What a command of SLURM prints; ``ValueError`` if it fails."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    except FileNotFoundError as error:
        raise UserError(f"--slurm needs {words[0]}, which is not on this machine: start it on a login node") from error
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{words[0]} failed ({first_line(getattr(error, 'stderr', '') or error)})") from error


def _lives(number: str) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
        return state not in "ZX" and b"submitit" in Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return False


def _size(path: Path) -> int:
    return os.path.getsize(path) if path.exists() else 0
