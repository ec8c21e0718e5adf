"""Waiting that has an end: after a minute it says what it waits for, after ten it gives up.

Long enough for a network drive that stands still for a minute and for a machine that swaps; whose is slower still sets
``FASTDHM_WAIT_SECONDS``. Everything that waits for another thread or process does it by a :class:`Wait`.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

from fastdhm.errors import UserError
from fastdhm.system.console import Console
from fastdhm.system.environment import positive

POLL_S = 0.5  # how long to sleep at a time, at most: between two calls of Wait.on
SAY_S = 60.0
LIMIT, LIMIT_S = "FASTDHM_WAIT_SECONDS", 600.0


class WaitedInVain(UserError):
    """What was waited for did not come; nothing was changed by waiting."""


class Wait:
    """One wait for ``what``; ``why`` tells what keeps it, such as the file that is being read.

    Time in which this process itself stood still (stopped, suspended, in a debugger) does not count.
    """

    def __init__(self, what: str, why: Callable[[], str]):
        self._what, self._why = what, why
        self.seconds, self._said = 0.0, 0.0
        self._last = time.monotonic()

    def on(self) -> None:
        """It has not come yet: call this about every ``POLL_S`` seconds.

        Raises:
            WaitedInVain: the limit is reached.
        """
        now = time.monotonic()
        self.seconds, self._last = self.seconds + min(now - self._last, 2 * POLL_S), now
        if self.seconds >= limit_s():
            raise WaitedInVain(
                f"{self._what} did not come in {self.seconds:.0f} s: {self._why()}. "
                f"If it is only slow, wait longer by {LIMIT}={6 * limit_s():.0f}"
            )
        if self.seconds >= max(SAY_S, 2 * self._said):
            self._said = self.seconds
            Console(stderr=True).print(f"waiting for {self._what} since {self.seconds:.0f} s: {self._why()}")


def waited_for(work: Callable, items: Iterable, what: str, why: Callable[[], str]) -> Iterator[Any]:
    """``work(item)`` of each, one at a time when it is asked for, in a thread that may be waited for: what this process
    reads itself can hang too, and nothing could be told or saved in a read that does not return."""
    asked: SimpleQueue = SimpleQueue()
    answers: SimpleQueue = SimpleQueue()
    threading.Thread(target=_serve, args=(work, asked, answers), daemon=True).start()
    try:
        for item in items:
            asked.put((item,))
            yield _answer(answers, Wait(what, why))
    finally:
        asked.put(None)


def _serve(work: Callable, asked: SimpleQueue, answers: SimpleQueue) -> None:
    while (item := asked.get()) is not None:
        try:
            answers.put((work(*item), None))
        except BaseException as error:  # whatever it is belongs to the reader
            answers.put((None, error))


def _answer(answers: SimpleQueue, wait: Wait) -> Any:
    while True:
        try:
            answer, error = answers.get(timeout=POLL_S)
        except Empty:
            wait.on()
            continue
        if error is not None:
            raise error
        return answer


def limit_s() -> float:
    """The longest wait in seconds; ``ValueError`` if the user set one that is none."""
    return positive(LIMIT, LIMIT_S, "seconds")
