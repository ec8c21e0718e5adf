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
HEAR_S = 1.0  # between two looks of the others at what the first process says
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


def launcher() -> int | None:
    """The process that started those of this run, if that is a launcher of ours."""
    number = os.environ.get("TORCHELASTIC_RUN_ID", "").removeprefix(OWN)
    return int(number) if number.isdecimal() and OWN + number == os.environ["TORCHELASTIC_RUN_ID"] else None


class LastWords:
    """Which process of the run ended first by an error, and its exit status: told through torch's ``store``."""

    def __init__(self, store: Any, here: Place):
        self.store, self.here, self.key = store, here, f"{SAID}/{attempt()}"
        self.first: list[str] = []
        self._over = threading.Event()
        # where the first process is the store's host, the store ends with it: the others have to hear it before
        self._hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self._listener = threading.Thread(target=self._listen, daemon=True)
        if self._hosted and here.rank:
            self._listener.start()

    def _listen(self) -> None:
        with suppress(RuntimeError):  # the host is gone
            while not self._over.wait(HEAR_S):
                if self.store.check([self.key]):
                    self.first = self.store.get(self.key).decode().split()
                    self.store.add(f"{self.key}/heard", 1)
                    return

    def _ask(self, error: BaseException) -> None:
        until = time.monotonic() + (RANK_S if self.here.rank and not isinstance(error, PeerLost) else 0)
        with suppress(RuntimeError):
            while time.monotonic() < until and not self.store.check([self.key]):
                time.sleep(0.05)
            said = self.store.compare_set(self.key, "", f"{self.here.rank} {exit_status(error)}")
            self.first = said.decode().split()

    def say(self, error: BaseException) -> None:
        """Mark ``error`` as said, with the exit status of whoever says it, unless this process is the first to end.

        If it is, ``by`` names it, where that matters.
        """
        here, lost = self.here, isinstance(error, PeerLost)
        if not self.first:  # torch would wait without end for a host that hangs
            asking = threading.Thread(target=self._ask, args=(error,), daemon=True)
            asking.start()
            asking.join(RANK_S + STORE_S)
        status = int(self.first[1]) if self.first else exit_status(error)
        # without the store, that is without the first process, one of each machine speaks
        one_of_machine = here.local_rank == int(here.rank == here.local_rank)
        speaks = self.first[0] == str(here.rank) if self.first else one_of_machine
        if speaks and GONE in str(error) and os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(OWN):
            speaks, status = False, UNSAID
        if not speaks:
            vars(error)["said"] = status
        elif here.rank and not lost:
            vars(error)["by"] = f"process {here.rank} of {here.count} on {socket.gethostname()}: "
        until = time.monotonic() + STORE_S
        while self._hosted and not (here.rank or lost) and time.monotonic() < until:
            if self.store.add(f"{self.key}/heard", 0) >= here.count - 1:
                break
            time.sleep(0.05)

    def close(self) -> None:
        """End the listening."""
        self._over.set()
        if self._listener.is_alive():
            self._listener.join(STORE_S)


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
