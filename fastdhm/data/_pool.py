"""Worker processes that answer in order, cannot be waited for in vain, and never outlive their parent."""

from __future__ import annotations

import collections
import ctypes
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>

_work: Callable  # set in each worker


class WorkerPool:
    """``with WorkerPool(work, workers) as pool: for answer in pool.map(items)``: ``work(item)`` of each, in order.

    A worker's exception is raised here. A worker that dies (killed for memory, say) raises ``RuntimeError``:
    the executor watches its processes, as FFCV's own writer does not.
    """

    def __init__(self, work: Callable, workers: int):
        self.workers = max(1, workers)
        # Forked, so that the work and the images it holds are inherited and not sent.
        context = multiprocessing.get_context("fork")
        self._executor = ProcessPoolExecutor(self.workers, context, _start, (work, os.getpid()))

    def __enter__(self) -> WorkerPool:
        self._executor.submit(int).result()  # forks them all now, before a progress bar's thread holds any lock
        return self

    def __exit__(self, *_) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def map(self, items: Iterable) -> Iterator:
        """A few items ahead for each worker, no more: answers can be large."""
        items = iter(items)
        try:
            ahead = collections.deque(self._submit(items, 2 * self.workers + 2))
            while ahead:
                answer = ahead.popleft().result()
                ahead.extend(self._submit(items, 1))
                yield answer
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died before its work was done, as when the system runs out of memory (see 'dmesg'). "
                f"Try fewer workers than {self.workers}."
            ) from error

    def _submit(self, items: Iterator, count: int) -> list:
        return [self._executor.submit(_call, item) for item in itertools.islice(items, count)]


def _start(work: Callable, parent: int) -> None:
    global _work
    _work = work
    # A forked worker holds its siblings' pipes open, so none would notice their parent's death: have the kernel tell.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if os.getppid() != parent:
        os._exit(1)


def _call(item):
    return _work(item)
