"""Worker processes that answer in order, cannot be waited for in vain, and never outlive their parent.

Plain forks, each with two pipes of its own. What workers share in ``multiprocessing`` and in torch's ``DataLoader``,
one of them can take from all by dying or standing still: the lock of a queue, the few descriptors that a message
carries, the space in ``/dev/shm``, which in a container may hold less than a batch. Large answers lie in memory that
was mapped before the forks and is no file.
"""

from __future__ import annotations

import array
import collections
import ctypes
import functools
import gc
import mmap
import os
import pickle
import select
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from fastdhm.data.images.read import silence_pillow
from fastdhm.errors import UserError
from fastdhm.system.console import Console
from fastdhm.system.waiting import POLL_S, Wait

AHEAD = 2  # items that each worker is given, so that none waits for its next
CONTINUE_S = 5.0  # a worker that someone stopped is told to go on after so long
END_S = 5.0  # how long to wait for a killed process; one that hangs in the kernel ends when its device answers
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
ORDER, LENGTH = struct.Struct("qq"), struct.Struct("Q")  # (item, room); bytes of the answer that follows
# What a scheduler or a terminal sends to all processes of a job: the parent decides, and may want the work that is done
PARENTS_TO_OBEY = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGXCPU")

NOTHING = -1
_hand = memoryview(array.array("q", [NOTHING]))  # what this process has in hand; a worker's is its parent's to read


def in_hand(sample: int) -> None:
    """Note that ``sample`` is being read, so that it can be named if the read does not return."""
    _hand[0] = sample


def reading(label: Callable[[int], str], hand: memoryview | None = None) -> str:
    """What is in hand, in this process or in that whose ``hand`` it is; empty if that is nothing."""
    sample = (_hand if hand is None else hand)[0]
    return "" if sample == NOTHING else f"reading {label(sample)}"


class WorkerPool:
    """``with WorkerPool(work, items, workers) as pool: for answer in pool.answers()``: ``work(item)`` of each, in
    order.

    With ``room_bytes``, ``work(item, room)`` may also write so many bytes to ``room``, and what comes is the pair of
    its answer and that memory, which the next item's worker will overwrite. ``label`` names what was :func:`in_hand`.

    A worker's exception is raised here. One that dies, or does not answer in time, raises ``UserError``.
    """

    def __init__(
        self,
        work: Callable,
        items: Sequence,
        workers: int,
        *,
        label: Callable[[int], str] = str,
        room_bytes: int = 0,
    ):
        self._work, self._items, self._label = work, items, label
        self._room_bytes, self._count = room_bytes, max(1, min(workers, len(items)))
        self._workers: list[_Worker] = []

    def __enter__(self) -> WorkerPool:
        """Fork them all now, before a progress bar's thread holds any lock."""
        rooms = AHEAD * self._count
        self._free = collections.deque(range(rooms))
        try:
            self._hands = memoryview(mmap.mmap(-1, 8 * self._count)).cast("q")
            self._rooms = memoryview(mmap.mmap(-1, max(1, rooms * self._room_bytes)))
            for number in range(self._count):
                self._hands[number] = NOTHING
                self._workers.append(self._fork(number))
        except OSError as error:
            started = len(self._workers)
            self.__exit__()
            raise UserError(
                f"worker {started + 1} of {self._count} cannot be started ({error.strerror}): take fewer "
                "--workers, or raise the limit (see 'ulimit -a')"
            ) from error
        self._poll = select.poll()
        self._by_pipe = {worker.answers: worker for worker in self._workers}
        for worker in self._workers:
            self._poll.register(worker.answers, select.POLLIN)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.status()
            os.close(worker.ask)
            os.close(worker.answers)
        self._workers.clear()

    def answers(self) -> Iterator[Any]:
        """What the work gives for each item."""
        given, ready = 0, {}
        for number in range(len(self._items)):
            given = self._give(given, number + AHEAD * self._count)
            wait = Wait("data", functools.partial(self._why, number))
            while number not in ready:
                self._listen(ready, wait)
            room, answer, error = ready.pop(number)
            if error is not None:
                _raise(answer, error)
            yield (answer, self._room(room)) if self._room_bytes else answer
            self._free.append(room)

    def _give(self, given: int, end: int) -> int:
        """Hand out items from ``given`` to ``end`` to who has the fewest, while any has fewer than it may."""
        while given < min(end, len(self._items)):
            worker = min(self._workers, key=lambda worker: len(worker.todo))
            if len(worker.todo) >= AHEAD:
                break
            worker.give(given, self._free.popleft())
            given += 1
        return given

    def _listen(self, ready: dict[int, tuple], wait: Wait) -> None:
        """Take in what workers answer, for half a second at most."""
        for pipe, _ in self._poll.poll(1000 * POLL_S):
            worker = self._by_pipe[pipe]
            if not worker.read():
                self._dead(worker)
            for message in worker.messages():
                number, room = worker.todo.popleft()
                ready[number] = (room, *pickle.loads(message))
        wait.on()
        if wait.seconds > CONTINUE_S:
            for worker in self._workers:
                worker.go_on()

    def _room(self, room: int) -> memoryview:
        return self._rooms[room * self._room_bytes : (room + 1) * self._room_bytes]

    def _doing(self, worker: _Worker) -> str:
        return reading(self._label, self._hands[worker.number :])

    def _why(self, number: int) -> str:
        worker = next(worker for worker in self._workers if any(number == item for item, _ in worker.todo))
        return f"worker process {worker.pid} is {self._doing(worker) or 'silent'}"

    def _dead(self, worker: _Worker) -> NoReturn:
        worker.kill()
        status = worker.status()
        how, remedy = f"ended with status {status}", "Take --workers 0 to see why"
        if status == -signal.SIGKILL:
            how, remedy = "was killed, as when memory runs out (see 'dmesg')", "Take fewer --workers"
        elif status is not None and status < 0:
            how, remedy = f"crashed by {signal.Signals(-status).name}", "Take that file out, or mend it"
        doing = self._doing(worker)
        raise UserError(f"worker process {worker.pid} {how}{doing and f' while {doing}'}. {remedy}")

    def _fork(self, number: int) -> _Worker:
        pipes: list[int] = []
        try:
            for _ in range(2):
                pipes += os.pipe()
            asked, ask, answers, answered = pipes
            parent = os.getpid()
            with warnings.catch_warnings():  # Python 3.12 warns of threads beside; what they could hold is not used
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError:
            for pipe in pipes:
                os.close(pipe)
            raise
        if pid == 0:
            try:
                _begin(parent, self._hands[number : number + 1])
                silence_pillow()
                self._serve(asked, answered)
            finally:
                os._exit(1)  # nothing of the parent's is flushed or cleaned up here
        os.close(asked)
        os.close(answered)
        return _Worker(number, pid, ask, answers)

    def _serve(self, asked: int, answered: int) -> None:
        """In a worker: answer until nothing more can be asked."""
        while order := os.read(asked, ORDER.size):  # written at once, so read at once: see pipe(7)
            number, room = ORDER.unpack(order)
            rooms = (self._room(room),) if self._room_bytes else ()
            try:
                answer, trace = self._work(self._items[number], *rooms), None
            except MemoryError:
                answer, trace = UserError("a worker process has no memory left: take fewer --workers"), ""
            except Exception as error:
                answer, trace = error, traceback.format_exc()
            message = _pickled(answer, trace)
            _write(answered, LENGTH.pack(len(message)))
            _write(answered, message)


@dataclass
class _Worker:
    """A worker as its parent has it."""

    number: int
    pid: int
    ask: int  # descriptors of pipes
    answers: int
    todo: collections.deque[tuple[int, int]] = field(default_factory=collections.deque)  # (item, room)
    inbox: bytearray = field(default_factory=bytearray)

    def give(self, item: int, room: int) -> None:
        self.todo.append((item, room))
        with suppress(BrokenPipeError):  # it has died, which its other pipe tells next
            os.write(self.ask, ORDER.pack(item, room))  # a few bytes: there is always room for them in a pipe

    def read(self) -> bool:
        """Take what lies in the pipe; false if the worker has ended."""
        part = os.read(self.answers, 1 << 20)
        self.inbox += part
        return bool(part)

    def messages(self) -> Iterator[bytes]:
        """The answers that have come whole."""
        while len(self.inbox) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self.inbox)[0]
            if len(self.inbox) < end:
                return
            message = bytes(self.inbox[LENGTH.size : end])
            del self.inbox[:end]
            yield message

    def go_on(self) -> None:
        """Wake it if someone stopped it and left this process running."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "T":
            Console(stderr=True).print(f"worker process {self.pid} was stopped (SIGSTOP): it is told to go on")
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it without waiting for its end; what ended it before stays its status."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def status(self) -> int | None:
        """How it ended, a signal as a negative number; None if that is not to be known, within some seconds."""
        for _ in range(int(END_S / 0.002)):
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # the program that we are in has asked for it, or ignores its children
                return None
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        return None


def _begin(parent: int, hand: memoryview) -> None:
    """In a worker, before any work."""
    global _hand
    _hand = hand
    # A forked worker holds its siblings' pipes open, so none would notice their parent's death: have the kernel tell.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for name in PARENTS_TO_OBEY:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    # A bar's thread may have held the lock of these when this process was made.
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    gc.freeze()  # what it inherited, tensors on a GPU among it, is not its to free
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # OpenMP's threads were not forked


def _pickled(answer: Any, trace: str | None) -> bytes:
    try:
        return pickle.dumps((answer, trace), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return pickle.dumps((RuntimeError(f"{type(answer).__name__} cannot be sent: {error}"), trace or ""))


def _raise(error: BaseException, trace: str) -> NoReturn:
    raise error from (None if isinstance(error, UserError) else RuntimeError(f"in a worker process:\n{trace}"))


def _write(pipe: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(pipe, rest) :]
