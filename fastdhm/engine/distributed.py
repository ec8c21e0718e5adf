"""Many processes, one run: who they are, what they share and how they agree. No other file imports torch.distributed.

A run of one process is the case ``count() == 1``: nothing is sent, and every function gives back what it is given.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # keeps the group that is there when it is imported, whose threads would outlive the run
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastdhm.engine.device import gpu_name
from fastdhm.engine.saved.record import to_host
from fastdhm.errors import UserError
from fastdhm.system.meeting import come, difference, meet, no_meeting
from fastdhm.system.network import in_time, reached
from fastdhm.system.peers import OWN, LastWords, PeerLost, end_as_before, first_end, launcher, of_a_lost_peer, peer_lost
from fastdhm.system.place import ATTEMPT, HERE, Place, attempt, place
from fastdhm.system.signals import stop_signals, stop_with_parent
from fastdhm.system.streams import tell
from fastdhm.system.waiting import limit_s

PIECE_BYTES = 64 << 20  # that travel at once
_travelling: set["Agreed"] = set()  # whose answer is on its way


@contextmanager
def joined(device: torch.device | str, mistake: UserError | None = None) -> Iterator[None]:
    """Inside, the processes of this run are one group: gloo for what lies on the host, NCCL for GPUs.

    The first that an exception ends, or the ``mistake`` of one before this, says why; all end with its exit status.

    Raises:
        PeerLost: a process ended, or did not answer within ``FASTDHM_WAIT_SECONDS``.
        ValueError: a place that cannot be; a process that did not come, or is set up otherwise than the first.
    """
    here = place()
    if here is None or dist.is_initialized():
        yield
        return
    gpus = mistake is None and str(device) != "cpu" and torch.cuda.is_available()
    limit = timedelta(seconds=limit_s())
    if "TORCHELASTIC_RUN_ID" in os.environ:
        stop_with_parent(launcher())  # else it would train on where that was killed
    base = _store(here, limit)
    end_as_before(base)
    store = dist.PrefixStore(f"fastdhm/{attempt()}", base)  # nothing that a failed attempt left there is read
    with _telling():
        come(store, here, torch.__version__, gpu_name(device) if gpus else None, mistake)
        meet(store, here, mistake)
    words = LastWords(base, here)
    try:
        with _telling():
            backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
            dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.count, timeout=limit)
            yield
            for agreed in [*_travelling]:  # an answer that comes after the interpreter's end would crash it
                agreed.arrive()
    except BaseException as error:
        with stop_signals():  # a launcher that stops the others must not cut off what is said
            words.say(error)
            if not gpus and dist.is_initialized():  # NCCL would wait for those that are gone
                dist.destroy_process_group()
        raise
    else:
        dist.destroy_process_group()
    finally:
        _travelling.clear()
        words.close()


def _store(here: Place, limit: timedelta) -> dist.Store:
    """What the processes share before they are a group: torchrun holds it, or the first process."""
    try:
        if here.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return dist.TCPStore(HERE, here.port, here.count, True, limit, wait_for_workers=False)
        address = reached(here.address, here.port)
        return in_time(lambda: dist.TCPStore(address, here.port, here.count, False, limit))
    except (RuntimeError, ValueError, TimeoutError) as error:
        told = error if isinstance(error, UserError) else no_meeting(here, error)
        if here.local_rank:  # one of a machine speaks
            vars(told)["said"] = told.status
        raise told from error


@contextmanager
def _telling() -> Iterator[None]:
    """What torch says when a process of the group is gone, in the user's words."""
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        if isinstance(error, dist.DistError) or of_a_lost_peer(error):
            raise peer_lost(error) from error
        raise


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def group() -> str:
    """The name by which torch's operations know the processes; "" of one alone."""
    return dist.distributed_c10d._get_default_group().group_name if count() > 1 else ""


def sum_(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over the processes."""
    if count() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def largest(number: int) -> int:
    """The largest of what the processes have for ``number``; the host waits."""
    found = torch.tensor(number)
    if count() > 1:
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def total(number: int) -> int:
    """The sum of what the processes have for ``number``; the host waits."""
    found = torch.tensor(number)
    sum_(found)
    return int(found)


def min_(*tensors: Tensor) -> None:
    """Replace each tensor by its least value over the processes."""
    if count() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor, dist.ReduceOp.MIN)


def gathered(own: Tensor, rows: int, total: int, *, to_all: bool = True) -> Tensor:
    """The ``total`` rows that the processes computed by turns, ``rows`` at a time, in order; ``own`` are this one's.

    They travel in pieces: a process holds ``own``, the result and PIECE_BYTES. Without ``to_all`` the first process
    alone gets them, and the others none.
    """
    if count() == 1:
        return own
    shape, number_N = own.shape[1:], torch.cat([torch.arange(0), *torch.arange(total).split(rows)[rank() :: count()]])
    piece = max(1, PIECE_BYTES // max(1, own.new_empty(1, *shape).nbytes))
    whole = own.new_empty(total if to_all or rank() == 0 else 0, *shape)
    for first in range(0, total, piece):
        part, here_N = own.new_zeros(min(piece, total - first), *shape), number_N // piece == first // piece
        part[number_N[here_N] - first] = own[here_N]
        sum_(part.view(torch.int32))  # each row is somebody's, and 0 elsewhere: its bits stay
        if len(whole):
            whole[first : first + piece] = part
    return whole


def take_from_first(module: nn.Module) -> None:
    """Give ``module`` the parameters and buffers that the first process has for it."""
    if count() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def from_first(value: Any) -> Any:
    """What the first process has for ``value``."""
    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def check_alike(what: str, values: Mapping[str, Any]) -> None:
    """``ValueError``, in every process, unless all have the same ``values``: it names the first that differ."""
    if count() > 1:
        found: list[Any] = [None] * count()
        dist.all_gather_object(found, {"host": socket.gethostname(), "alike": values})
        if wrong := difference(found, what):
            raise UserError(wrong)


@contextmanager
def in_turn() -> Iterator[None]:
    """The first process goes first, then the first of each other machine, then the rest: each finds what is there.

    The others wait as long as it takes, so that a data set may be built inside; but not for one that is gone or hangs.
    """
    here = place()
    if count() == 1 or here is None:
        yield
        return
    for turn in range(3):
        done = threading.Event()
        if turn == min(here.rank, 1 + min(here.local_rank, 1)):
            with ThreadPoolExecutor(1) as others:
                asked = others.submit(_until_all, done)
                try:
                    yield
                finally:
                    done.set()
                asked.result()
        else:
            done.set()
            _until_all(done)


def _until_all(done: threading.Event) -> None:
    while largest(not done.is_set()):
        time.sleep(0.1)


class Agreed:
    """A question to all processes: a call gives the largest answer of any of them, all get the same, at the same call.

    It is of the call before: the answers travel while the next step is computed, so nobody waits for them.
    """

    def __init__(self, question: Callable[[], int | None]):
        self.question, self.answer = question, 0
        self._sent: tuple[Tensor, dist.Work] | None = None

    def __call__(self) -> int:
        """Between two steps, and as often in every process."""
        if count() == 1:
            self.answer = self.question() or 0
            return self.answer
        self.arrive()
        sent = torch.tensor(int(self.question() or 0))
        self._sent = sent, dist.all_reduce(sent, dist.ReduceOp.MAX, async_op=True)
        _travelling.add(self)
        return self.answer

    def arrive(self) -> None:
        """Wait for the answer that is on its way, if one is."""
        if self._sent is not None:
            sent, work = self._sent
            work.wait()
            self.answer, self._sent = to_host(sent), None
            _travelling.remove(self)


def send_bfloat16(sharing: DistributedDataParallel) -> None:
    """Have it send gradients in bfloat16."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    sharing.register_comm_hook(None, default_hooks.bf16_compress_hook)


def launch(processes: int, argv: list[str], restarts: int = 0) -> int:
    """``fastdhm ARGV`` in so many processes on this machine, by torchrun's own launcher; returns the exit status.

    All end with one. Unless a signal or a mistake of the user's ended it, they are begun anew, ``restarts`` times.
    """
    for number in range(restarts + 1):
        os.environ[ATTEMPT] = str(number)
        status, why = _launch(processes, argv)
        if status in (0, 2) or status > 128 or number == restarts:
            break
        tell(f"fastdhm: {why or 'a process failed'}: starting all {processes} again ({number + 1} of {restarts})")
    if status == PeerLost.status and why:
        raise PeerLost(f"{why}: go on from the last checkpoint with --resume")
    return status


def _launch(processes: int, argv: list[str]) -> tuple[int, str]:
    """The exit status of these processes and, where none of them could say it, what happened."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=0, run_id=f"{OWN}{os.getpid()}",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost",
    )  # fmt: skip

    def hand_on(number: int, _frame: object) -> None:
        raise SignalException(f"stopped by {signal.Signals(number).name}", signal.Signals(number))

    for kind in (signal.SIGUSR1, signal.SIGUSR2):  # torch's launcher hands on the others
        signal.signal(kind, hand_on)
    logging.disable()  # of torch's launcher: its news are said here
    try:
        elastic_launch(config, sys.executable)("-m", "fastdhm", *argv)
    except ChildFailedError as error:
        return first_end({number: failure.exitcode for number, failure in error.failures.items()}, processes)
    except SignalException as error:
        return 128 + error.sigval, ""
    finally:
        logging.disable(logging.NOTSET)
    return 0, ""
