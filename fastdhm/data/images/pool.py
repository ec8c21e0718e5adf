"""Worker processes that answer in order, never make their parent wait for ever, and never outlive it.

They are plain forks, each with two pipes of its own. In ``multiprocessing`` and in torch's ``DataLoader``, workers
share the lock of a queue, file descriptors and the space in ``/dev/shm``, which in a container may hold less than a
batch. So one worker that dies or hangs can block all. Here, large answers go through memory that was mapped before the
forks and belongs to no file.
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
from fastdhm.system.waiting import POLL_S, Wait

AHEAD = 2  # items that each worker is given, so that it never waits for the next
CONTINUE_S = 5.0  # a worker that someone stopped is continued after this time
END_S = 5.0  # how long to wait for a killed process; one that hangs in the kernel ends when its device answers
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
ORDER, LENGTH = struct.Struct("qq"), struct.Struct("Q")  # (item, room); bytes of the answer that follows
# Signals that a scheduler or a terminal sends to all processes of a job. The parent decides: it may need the work.
PARENTS_TO_OBEY = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGXCPU")

NOTHING = -1
_hand = memoryview(array.array("q", [NOTHING]))  # the sample that this process reads; the parent can see a worker's


def in_hand(sample: int) -> None:
    """Note that ``sample`` is being read, so that a message can name it if the read does not return."""
    _hand[0] = sample


def reading(label: Callable[[int], str], hand: memoryview | None = None) -> str:
    """``reading SAMPLE``: what this process, or the one that ``hand`` belongs to, is reading; empty if nothing."""
    sample = (_hand if hand is None else hand)[0]
    return "" if sample == NOTHING else f"reading {label(sample)}"


class WorkerPool:
    """Computes ``work(item)`` of each item in worker processes; the answers come in the order of the items.

    Use it as ``with WorkerPool(work, items, workers) as pool: for answer in pool.answers()``.

    With ``room_bytes``, ``work(item, room)`` may also write that many bytes to ``room``. Then each answer is the pair
    of the answer and that memory, which a later item will overwrite. ``label`` gives the name of a sample that is
    :func:`in_hand`.

    A worker's exception is raised here. A worker that dies, or does not answer in time, raises ``UserError``.
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
        """Fork all workers now, before the thread of a progress bar holds a lock."""
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
                f"worker {started + 1} of {self._count} cannot be started ({error.strerror}): use fewer "
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
        """The answer for each item, in order."""
        given = 0
        ready: dict[int, tuple] = {}
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
        """Give the items from ``given`` to ``end`` to the worker with the fewest, until all have ``AHEAD`` items."""
        while given < min(end, len(self._items)):
            worker = min(self._workers, key=lambda worker: len(worker.todo))
            if len(worker.todo) >= AHEAD:
                break
            worker.give(given, self._free.popleft())
            given += 1
        return given

    def _listen(self, ready: dict[int, tuple], wait: Wait) -> None:
        """Receive answers of workers, for half a second at most."""
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
        how, remedy = f"ended with status {status}", "Use --workers 0 to see why"
        if status == -signal.SIGKILL:
            how, remedy = "was killed, as when memory runs out (see 'dmesg')", "Use fewer --workers"
        elif status is not None and status < 0:
            how, remedy = f"crashed with {signal.Signals(-status).name}", "Remove that file, or repair it"
        doing = self._doing(worker)
        raise UserError(f"worker process {worker.pid} {how}{doing and f' while {doing}'}. {remedy}")

    def _fork(self, number: int) -> _Worker:
        pipes: list[int] = []
        try:
            for _ in range(2):
                pipes += os.pipe()
            asked, ask, answers, answered = pipes
            parent = os.getpid()
            with warnings.catch_warnings():  # Python 3.12 warns of other threads; workers use nothing those could lock
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
        """In a worker: answer until the parent closes its pipe."""
        while order := os.read(asked, ORDER.size):  # written at once, so read at once: see pipe(7)
            number, room = ORDER.unpack(order)
            rooms = (self._room(room),) if self._room_bytes else ()
            try:
                answer, trace = self._work(self._items[number], *rooms), None
            except MemoryError:
                answer, trace = UserError("a worker process has no memory left: use fewer --workers"), ""
            except Exception as error:
                answer, trace = error, traceback.format_exc()
            message = _pickled(answer, trace)
            _write(answered, LENGTH.pack(len(message)))
            _write(answered, message)


@dataclass
class _Worker:
    """A worker as its parent sees it."""

    number: int
    pid: int
    ask: int  # descriptors of pipes
    answers: int
    todo: collections.deque[tuple[int, int]] = field(default_factory=collections.deque)  # (item, room)
    inbox: bytearray = field(default_factory=bytearray)

    def give(self, item: int, room: int) -> None:
        self.todo.append((item, room))
        with suppress(BrokenPipeError):  # it has died; its other pipe will show that
            os.write(self.ask, ORDER.pack(item, room))  # a few bytes: a pipe always has room for them

    def read(self) -> bool:
        """Receive what is in the pipe; false if the worker has ended."""
        part = os.read(self.answers, 1 << 20)
        self.inbox += part
        return bool(part)

    def messages(self) -> Iterator[bytes]:
        """The answers that have arrived whole."""
        while len(self.inbox) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self.inbox)[0]
            if len(self.inbox) < end:
                return
            message = bytes(self.inbox[LENGTH.size : end])
            del self.inbox[:end]
            yield message

    def go_on(self) -> None:
        """Continue it if someone stopped it while this process runs."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "T":
            from fastdhm.system.console import Console  # rich only if there is something to say

            Console(stderr=True).print(f"worker process {self.pid} was stopped (SIGSTOP): continuing it")
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it without waiting for its end; if it had already ended, its status stays."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def status(self) -> int | None:
        """How it ended, a signal as a negative number; None if that cannot be found out within ``END_S`` seconds."""
        for _ in range(int(END_S / 0.002)):
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # the calling program has waited for it, or ignores its children
                return None
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        return None


def _begin(parent: int, hand: memoryview) -> None:
    """In a worker, before any work."""
    global _hand
    _hand = hand
    # A forked worker holds its siblings' pipes open, so none would notice that the parent died: let the kernel kill it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for name in PARENTS_TO_OBEY:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    # The thread of a progress bar may have held the locks of these when this process was forked.
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    gc.freeze()  # objects of the parent, such as tensors on a GPU, must not be freed here
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # a fork does not copy OpenMP's threads


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
