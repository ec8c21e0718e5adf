"""How much memory this process may use: the machine's, or the limit of its job or container."""

import math
import os
from pathlib import Path

from fastdhm.system.processors import ROOT, groups, read


def total_bytes() -> int:
    """The machine's memory, or the limit of this process's control groups if that is lower."""
    return int(min(installed_bytes(), limit_bytes()))


def installed_bytes() -> int:
    """All memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_bytes(root: Path = ROOT) -> int | None:
    """Memory that can be used without swapping; None where the system does not say."""
    lines = read(root / "proc/meminfo").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def limit_bytes(root: Path = ROOT) -> float:
    """The lowest limit of this process's control groups; infinite without a limit.

    Version 1 writes "no limit" as a number near 2^63. ``root`` is the folder that holds ``proc`` and ``sys``.
    """
    return min((_limit_of(folder) for folder in groups("memory", root)), default=math.inf)


def _limit_of(group: Path) -> float:
    text = (read(group / "memory.max") or read(group / "memory.limit_in_bytes")).strip()
    return int(text) if text.isdecimal() else math.inf
