"""Where this process stands among those of its run, as torchrun, SLURM's ``srun`` or ``--processes`` says it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastdhm.errors import UserError

PORT = 29500  # torch's own default
ATTEMPT = "FASTDHM_ATTEMPT"  # set by our launcher
HERE = "localhost"
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its run, and where the first of them is met."""

    rank: int
    count: int
    local_rank: int
    local_count: int
    address: str
    port: int


def place(environ: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place as torchrun or SLURM's ``srun`` says it; None where it runs alone.

    Raises:
        ValueError: variables that are no whole numbers, or do not fit together.
    """
    slurm = by_srun(environ)
    names, values = (SLURM, _of_srun(environ)) if slurm else (TORCHRUN, {name: environ.get(name) for name in TORCHRUN})
    if values[names[1]] in (None, "1"):
        return None
    local = values[names[2]] or "0"
    words = (values[names[0]], values[names[1]], local, values[names[3]] or (local.isdecimal() and str(int(local) + 1)))
    if not all(word and word.isdecimal() for word in words):
        said = ", ".join(f"{name}={value or ''!r}" for name, value in values.items())
        raise UserError(f"{said}: must be whole numbers. Start the processes with torchrun, srun or --processes")
    rank, count, local_rank, local_count = (int(word) for word in words if word)
    for name, number, of, several in ((names[0], rank, names[1], count), (names[2], local_rank, names[3], local_count)):
        if number >= several:
            raise UserError(f"{name} is {number}: must be below {of}, which is {several}")
    address = environ.get("MASTER_ADDR") or (HERE if local_count >= count else slurm and _first_host(environ))
    if not address:
        raise UserError(
            f"MASTER_ADDR is not set, for {count} processes of which {local_count} are here: set it to the machine of "
            "process 0, or start them with torchrun"
        )
    return Place(rank, count, local_rank, local_count, address, _port(environ, slurm))


def speaks(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process says what all of its run have to say, such as a signal that reached all: the first does."""
    try:
        here = place(environ)
    except UserError:  # what it stands in is not known
        return True
    return here is None or here.rank == 0


def attempt(environ: Mapping[str, str] = os.environ) -> int:
    """How often a launcher, torch's or ours, has started the processes of this run before."""
    return int(environ.get(ATTEMPT) or environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def by_srun(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ``srun`` started this process as a task; a batch script and an interactive shell are none."""
    return "RANK" not in environ and "SLURM_PTY_PORT" not in environ and environ.get("SLURM_STEP_ID", "").isdecimal()


def _of_srun(environ: Mapping[str, str]) -> dict[str, str | None]:
    """A step's values, or those of its job where it has none."""
    whole = {"SLURM_STEP_NUM_TASKS": "SLURM_NTASKS", "SLURM_STEP_TASKS_PER_NODE": "SLURM_TASKS_PER_NODE"}
    values = {name: environ.get(name, environ.get(whole.get(name, name))) for name in SLURM}
    # SLURM writes 4(x2),3 for two nodes of four tasks and one of three
    runs = re.findall(r"(\d+)(?:\(x(\d+)\))?(?:,|$)", values[SLURM[3]] or "")
    tasks = [number for number, times in runs for _ in range(int(times or 1))]
    node = environ.get("SLURM_NODEID", "0")
    if node.isdecimal() and int(node) < len(tasks):
        values[SLURM[3]] = tasks[int(node)]
    return values


def _port(environ: Mapping[str, str], slurm: bool) -> int:
    """``MASTER_PORT``; without it, under SLURM another for each step of each job."""
    said = environ.get("MASTER_PORT")
    if said is None:
        job, step = (re.sub(r"\D", "", environ.get(f"SLURM_{name}_ID", "")) or "0" for name in ("JOB", "STEP"))
        return 20000 + (31 * int(job) + int(step)) % 10000 if slurm else PORT
    if not (said.isdecimal() and 0 < int(said) < 2**16):
        raise UserError(f"MASTER_PORT is {said!r}: must be a number from 1 to 65535, the same for every process")
    return int(said)


def _first_host(environ: Mapping[str, str]) -> str:
    """The first host of a step's list, as SLURM writes it: ``gpu[07-09,12]-ib,login1``."""
    nodes = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_NODELIST", ""))
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0] if first else "")
