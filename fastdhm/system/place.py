"""Where this process stands among those of its run, as torchrun, SLURM's ``srun`` or ``--processes`` says it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastdhm.errors import UserError

PORT = 29500  # torch's own default
ATTEMPT = "FASTDHM_ATTEMPT"  # set by our launcher


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
    slurm = "RANK" not in environ and "SLURM_PROCID" in environ and environ.get("SLURM_STEP_ID", "").isdecimal()
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_TASKS_PER_NODE") if slurm else (
        "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
    )  # fmt: skip
    if names[1] not in environ:
        return None
    # SLURM writes 4(x2),3 for two nodes of four tasks and one of three
    values = [
        re.match(r"\d+", environ.get(name, default)) for name, default in zip(names, ("", "", "0", "1"), strict=True)
    ]
    if not all(values):
        said = ", ".join(f"{name}={environ.get(name, '')!r}" for name in names)
        raise UserError(f"{said}: must be whole numbers. Start the processes with torchrun, srun or --processes")
    rank, count, local_rank, local_count = (int(value[0]) for value in values if value)
    if count == 1:
        return None
    if not 0 <= rank < count:
        raise UserError(f"{names[0]} is {rank}: must be from 0 to {count - 1}, as {names[1]} is {count}")
    first = _first_host(environ.get("SLURM_STEP_NODELIST", "localhost")) if slurm else "localhost"
    port = PORT + int(environ.get("SLURM_JOB_ID", "0")) % 1000 if slurm else PORT
    given = environ.get("MASTER_PORT", str(port))
    return Place(rank, count, local_rank, local_count, environ.get("MASTER_ADDR", first), int(given))


def attempt(environ: Mapping[str, str] = os.environ) -> int:
    """How often a launcher, torch's or ours, has started the processes of this run before."""
    return int(environ.get(ATTEMPT) or environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def _first_host(nodes: str) -> str:
    """The first host of ``gpu[07-09,12],login1``, as SLURM writes lists."""
    found = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else "localhost"
