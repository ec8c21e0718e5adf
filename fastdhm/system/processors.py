"""How many processors this process may use: the one count for torch, loaders, worker processes and builds.

The machine's own number says too much where a job or a container has a part of it: there the affinity mask decides, or
a quota of the control groups, and threads beyond it wait for each other instead of computing. ``setup.py`` loads this
file alone, which imports nothing but the standard library.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path("/")


def count(root: Path = ROOT, environ: Mapping[str, str] = os.environ) -> int:
    """The processors to use, at least one: what the affinity mask, the quota and ``OMP_NUM_THREADS`` all allow.

    A quota of 1.5 counts as one: a second thread, stopped for half of the time, would hold up the first at every
    barrier. ``root`` is where ``proc`` and ``sys`` lie.
    """
    allowed = len(os.sched_getaffinity(0))
    return max(
        1, min(allowed, math.floor(quota(root)) if quota(root) < allowed else allowed, asked(environ) or allowed)
    )


def why(root: Path = ROOT, environ: Mapping[str, str] = os.environ) -> str:
    """For a person, in parentheses, what keeps :func:`count` below the affinity mask; empty where nothing does."""
    allowed, limit = len(os.sched_getaffinity(0)), count(root, environ)
    if limit == allowed:
        return ""
    if asked(environ) == limit:
        return " (OMP_NUM_THREADS)"
    return f" (a quota of {quota(root):.2g} of {allowed} processors)"


def asked(environ: Mapping[str, str] = os.environ) -> int | None:
    """What the user set in ``OMP_NUM_THREADS``, of its outermost level; ``None`` where that is no number."""
    first = environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def quota(root: Path = ROOT) -> float:
    """Processors' worth of time that this process's control groups allow, the narrowest of them; infinite without."""
    return min((_quota_of(folder) for folder in groups("cpu", root)), default=math.inf)


def groups(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """The folders of this process's control groups that may have a limit of ``controller``, such as cpu or memory.

    Both versions are read, see cgroups(7), as a machine can have both: every group from this process's own up to where
    the hierarchy is mounted, since each can have a limit of its own.
    """
    own = {}  # controllers -> path in that hierarchy
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
        # A container can see its own group mounted as the whole tree, and its path as it is outside.
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
    """A path of ``mountinfo``, where blanks are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def read(path: Path) -> str:
    """The text of a file that the kernel writes; empty where there is none."""
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
