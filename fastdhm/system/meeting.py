"""The processes of a run meet before it begins: all come, each once, and with the same set-up.

They meet at a store: torch's, which the first process or torchrun holds.
"""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastdhm.errors import UserError, few, first_line
from fastdhm.system.network import GLOO, check_interface, interface_of, is_loopback, own_address, resolved
from fastdhm.system.peers import PeerLost
from fastdhm.system.place import Place
from fastdhm.system.signals import stop_signals
from fastdhm.system.waiting import Wait, limit_s

ASK_S = 0.1  # between two questions to the store
MOMENT_S = 10.0  # in which those come that were started together
SAY_S = 1.0
MET, READ = "met", "read"
Facts = Mapping[str, Any]


def come(store: Any, here: Place, torch: str, gpu: str | None, mistake: UserError | None = None) -> None:
    """Say that this process is there, with which ``torch`` and on which ``gpu``, and whether it made a ``mistake``.

    Raises:
        ValueError: another one is there under its number.
    """
    alike = {"torch": torch, "device": "cpu" if gpu is None else "cuda"}
    facts = {"rank": here.rank, "host": socket.gethostname(), "pid": os.getpid(), "gpu": gpu, "alike": alike}
    mine = json.dumps({**facts, "address": own_address(resolved(here.address)), "mistake": mistake is not None})
    there = store.compare_set(f"come/{here.rank}", "", mine).decode()
    if there != mine:
        raise UserError(
            f"process {here.rank} of the run at {here.address}:{here.port} is on {json.loads(there)['host']} already: "
            "give each process a RANK of its own, and each run a MASTER_PORT of its own"
        )


def meet(store: Any, here: Place, mistake: UserError | None = None) -> None:
    """Wait until all have come; gloo is told the network interface over which they reach each other.

    By itself it takes the one that the machine's own name has, which may be 127.0.1.1 or nothing.

    Raises:
        ValueError: a process made a ``mistake``, not all come, or what they said does not fit together. It is ``said``
            but in the process that says it.
    """
    if here.rank == 0:
        found, why = _all(store, here, mistake)
        speakers = [one["rank"] for one in found if one["mistake"]]
        addresses = [one["address"] for one in found if not is_loopback(one["address"])]
        verdict = {"wrong": why or ("" if speakers else _misfit(found)), "speaker": (speakers or [0])[0]}
        store.set(MET, json.dumps({**verdict, "end": bool(speakers), "towards": (addresses or ["127.0.0.1"])[0]}))
    until = time.monotonic() + limit_s() + MOMENT_S
    while not store.check([MET]):
        if time.monotonic() > until:
            raise PeerLost(f"process 0 did not answer for {limit_s():.0f} s")
        time.sleep(ASK_S)
    verdict = json.loads(store.get(MET))
    if verdict["wrong"] or verdict["end"]:
        error = mistake or UserError(verdict["wrong"] or "another process made a mistake")
        _end(store, here, error, verdict["speaker"])
        raise error
    check_interface()
    if name := interface_of(own_address(verdict["towards"])):
        os.environ.setdefault(GLOO, name)


def _end(store: Any, here: Place, error: UserError, speaker: int) -> None:
    """Leave ``error`` to the one that says it, and time to say it; the first process stays until all have heard."""
    store.add(READ, 1)
    with stop_signals():  # a launcher stops the others
        until = time.monotonic() + MOMENT_S / 2
        while here.rank == 0 and store.add(READ, 0) < here.count and time.monotonic() < until:
            time.sleep(ASK_S)
        if here.rank != speaker:
            vars(error)["said"] = error.status
            time.sleep(SAY_S)
        elif here.rank:
            vars(error)["by"] = f"process {here.rank} of {here.count} on {socket.gethostname()}: "


def no_meeting(here: Place, error: Exception) -> UserError:
    """Why torch opens no store where the processes are to meet."""
    where, free = f"{here.address}:{here.port}", "set MASTER_PORT to a free port, the same for every process"
    if here.rank == 0:
        used = "is in use" if "EADDRINUSE" in str(error) else f"cannot be had ({first_line(error)[:100]})"
        return UserError(f"port {here.port}, where process 0 meets the others, {used}: {free}")
    return UserError(f"what answers at {where} is not process 0 of this run: {free}")


def difference(found: Sequence[Facts], what: str = "") -> str:
    """What the first of these has and another has not alike, by name; empty if there is nothing.

    Each has a ``host`` and values that are ``alike``.
    """
    first = found[0]
    for number, one in enumerate(found):
        for name, value in first["alike"].items():
            other = one["alike"].get(name)
            if other != value:
                return (
                    f"process {number} on {one['host']} has {what}{name} {_short(other)}, and process 0 on "
                    f"{first['host']} has {_short(value)}: give all processes the same"
                )
    return ""


def _short(value: Any) -> str:
    return f"{str(value)[:80]}{'...' * (len(str(value)) > 80)}"


def _all(store: Any, here: Place, mistake: UserError | None) -> tuple[list[Facts], str]:
    """The facts of all processes, and why there are not more."""
    missing, found = list(range(here.count)), list[Facts]()
    wait = Wait(
        f"{here.count} processes",
        lambda: (
            f"missing at {here.address}:{here.port}: {few([str(number) for number in missing])}. They may have "
            "ended, or WORLD_SIZE or MASTER_ADDR is wrong"
        ),
    )
    while True:
        came = [number for number in missing if store.check([f"come/{number}"])]
        found += [json.loads(store.get(f"come/{number}")) for number in came]
        missing = [number for number in missing if number not in came]
        hurried = mistake is not None or any(one["mistake"] for one in found)
        if not missing or (hurried and wait.seconds > min(MOMENT_S, limit_s())):
            return sorted(found, key=lambda one: one["rank"]), ""
        try:
            wait.on()
        except UserError as error:
            return found, str(error)
        time.sleep(ASK_S)


def _misfit(found: Sequence[Facts]) -> str:
    takers: dict[tuple[str, str], int] = {}
    for number, one in enumerate(found):
        if one["gpu"] and number != (other := takers.setdefault((one["host"], one["gpu"]), number)):
            return (
                f"processes {other} and {number} on {one['host']} have the same GPU: start one process for each GPU, "
                "or set LOCAL_RANK to a process's number on its machine"
            )
    return difference(found)
