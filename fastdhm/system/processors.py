"""How many processors this process may use: the one count for torch, loaders, worker processes and builds.

A job or a container may have only a part of the machine. Then the affinity mask or the quota of the control groups
decides; if there are more threads than that, they wait for each other instead of computing. ``setup.py`` loads this
file alone, so it imports only the standard library.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path("/")


def count(root: Path = ROOT, environ: Mapping[str, str] = os.environ) -> int:
    """The processors to use, at least one: what the affinity mask, the quota and ``OMP_NUM_THREADS`` all allow.

    A quota of 1.5 counts as one: a second thread would be stopped half of the time, and would hold up the first at
    every barrier. ``root`` is the folder that holds ``proc`` and ``sys``.
    """
    allowed = len(os.sched_getaffinity(0))
    share = math.floor(min(allowed, quota(root)) / _processes(environ))
    return max(1, min(share, asked(environ) or share))


def why(root: Path = ROOT, environ: Mapping[str, str] = os.environ) -> str:
    """Why :func:`count` is below the affinity mask, in parentheses, for the user; empty if it is not."""
    allowed, limit = len(os.sched_getaffinity(0)), count(root, environ)
    if limit == allowed:
        return ""
    if asked(environ) == limit:
        return " (OMP_NUM_THREADS)"
    if _processes(environ) > 1:
        return f" (of {allowed}, for {_processes(environ)} processes)"
    return f" (a quota of {quota(root):.2g} of {allowed} processors)"


def asked(environ: Mapping[str, str] = os.environ) -> int | None:
    """The outermost level of ``OMP_NUM_THREADS``; ``None`` if that is not a number above 0, or torchrun's own 1."""
    first = environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 and not of_torchrun(environ) else None


def of_torchrun(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ``OMP_NUM_THREADS`` is what torchrun sets where the user set nothing: one thread for each process."""
    several = "TORCHELASTIC_RUN_ID" in environ and _processes(environ) > 1
    return several and environ.get("OMP_NUM_THREADS") == "1"


def _processes(environ: Mapping[str, str]) -> int:
    """How many processes of a run share the processors of the affinity mask, as torchrun and srun say it.

    srun may give each of its tasks a mask of its own: then that is smaller than what the job has on this machine.
    """
    said = environ.get("LOCAL_WORLD_SIZE", "")
    if not said and environ.get("SLURM_STEP_ID", "").isdecimal() and "SLURM_PTY_PORT" not in environ:
        tasks = re.match(r"\d*", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        on_node = environ.get("SLURM_CPUS_ON_NODE", "")
        shared = on_node.isdecimal() and len(os.sched_getaffinity(0)) >= int(on_node)
        said = tasks[0] if tasks and shared else ""
    return int(said) if said.isdecimal() and int(said) else 1


def quota(root: Path = ROOT) -> float:
    """The lowest CPU quota of this process's control groups, in processors; infinite without a quota."""
    return min((_quota_of(folder) for folder in groups("cpu", root)), default=math.inf)


def groups(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """The folders of this process's control groups that may have a limit of ``controller``, such as cpu or memory.

    These are all groups from the mount point of the hierarchy down to this process's own: each can have a limit. A
    machine can have both versions, see cgroups(7), so both are read.
    """
    own: dict[str, str] = {}  # controllers -> path in that hierarchy
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)  # version 2 has the name ""
    for line in read(root / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")  # see proc_pid_mountinfo(5)
        kind, _, options = rest.split(" ", 2)
        name = {"cgroup2": "", "cgroup": controller}.get(kind)
        if name not in own or (kind == "cgroup" and controller not in options.split(",")):
            continue
        top, mounted = (_unescaped(field) for field in fields.split(" ")[3:5])
        folder = root / mounted.lstrip("/")
        # In a container, the mount may show only its own group, and the path may be the one outside.
        inside = os.path.relpath(own[name], top)
        parts = () if inside.startswith("..") else Path(inside).parts
        yield folder
        for part in parts:
            folder /= part
            yield folder


def _quota_of(group: Path) -> float:
    """The quota of one group alone."""
    words = read(group / "cpu.max").split() or [
        read(group / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    ]
    try:
        share, period = map(int, words)
    except ValueError:  # "max", or the group has no such file
        return math.inf
    return share / period if share > 0 and period > 0 else math.inf


def _unescaped(field: str) -> str:
    """A path of ``mountinfo``, which writes spaces as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def read(path: Path) -> str:
    """The text of a file of the kernel; empty if there is none."""
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
