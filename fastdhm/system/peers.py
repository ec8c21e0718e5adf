"""How a process of several ends: one says why, for all of them, and all have its exit status."""

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from fastdhm.errors import UserError
from fastdhm.system.endings import exit_status
from fastdhm.system.place import Place, attempt
from fastdhm.system.signals import ENDING
from fastdhm.system.waiting import limit_s

SAID = "fastdhm/said"  # in the store: which process ended first, and its exit status
OWN = "fastdhm-"  # so begin the names of our launcher's runs
UNSAID = 76  # how a process tells our launcher that it lost another one, which the launcher knows more of
STORE_S = 5.0  # for an answer of the store
RANK_S = 2.0  # in which the first process may come to say the same
GONE = "ended without a word"
LOST = ("gloo", "pair closure", "Connection closed by peer", "Connection reset by peer")  # as torch and gloo say it


class PeerLost(UserError):
    """Another process of the run ended, or no longer answers: begun anew, the run may go well."""

    status = 75  # EX_TEMPFAIL of sysexits.h


def of_a_lost_peer(error: Exception) -> bool:
    """Whether this error of torch says that a process is lost; only its text tells."""
    return any(words in str(error) for words in LOST)


def peer_lost(error: Exception) -> PeerLost:
    """torch's error in the user's words."""
    late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
    what = f"did not answer for {limit_s():.0f} s: it hangs, or its network is gone" if late else f"{GONE} (memory?)"
    return PeerLost(f"another process of this run {what}. Go on from the last checkpoint with --resume")


def say_once(error: BaseException, store: Any, here: Place) -> None:
    """Mark ``error`` as said, with the exit status of whoever says it, unless this process is the first to end.

    If it is, ``by`` names it, where that matters. ``store`` is what the processes share, torch's.
    """
    lost, key, found = isinstance(error, PeerLost), f"{SAID}/{attempt()}", list[str]()

    def ask() -> None:
        until = time.monotonic() + (RANK_S if here.rank and not lost else 0)
        with suppress(RuntimeError):  # its host is gone
            while time.monotonic() < until and not store.check([key]):
                time.sleep(0.05)
            found.extend(store.compare_set(key, "", f"{here.rank} {exit_status(error)}").decode().split())

    asking = threading.Thread(target=ask, daemon=True)  # torch would wait without end for a host that hangs
    asking.start()
    asking.join(STORE_S + RANK_S)
    status = int(found[1]) if found else exit_status(error)
    # without the store, that is without the first process, one of each machine speaks
    speaks = found[0] == str(here.rank) if found else here.local_rank == int(here.rank == here.local_rank)
    if speaks and GONE in str(error) and os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(OWN):
        speaks, status = False, UNSAID
    if not speaks:
        vars(error)["said"] = status
    elif here.rank and not lost:
        vars(error)["by"] = f"process {here.rank} of {here.count} on {socket.gethostname()}: "


def end_as_before(store: Any) -> None:
    """End at once if the attempt before this one met a mistake that only the user can mend, and said so."""
    before = f"{SAID}/{attempt() - 1}"
    if attempt() and store.check([before]) and (first := store.get(before)).endswith(b" 2"):
        store.set(f"{SAID}/{attempt()}", first)
        error = UserError("the attempt before this one said it")
        vars(error)["said"] = UserError.status
        raise error


def first_end(statuses: dict[int, int], processes: int) -> tuple[int, str]:
    """The exit status that counts of those that failed and, where none of them could say it, what happened.

    Their order in time is not known, and the launcher has sent SIGTERM to those that lived on.
    """
    late = (UNSAID, 128 + signal.SIGTERM, -signal.SIGTERM)
    number, status = min(statuses.items(), key=lambda pair: (pair[1] in late, pair[1] < 0))
    if status >= 0:
        return (PeerLost.status, "a process was lost") if status == UNSAID else (status, "")
    kind = signal.Signals(-status)
    if kind in ENDING:
        return 128 + kind, ""
    memory = " (memory?)" * (kind == signal.SIGKILL)
    return PeerLost.status, f"process {number} of {processes} was killed by {kind.name}{memory}"
