"""Waiting that ends: after a minute it says what it waits for, after ten minutes it gives up.

That is long enough for a network drive that hangs for a minute and for a machine that swaps. If yours is slower, set
``FASTDHM_WAIT_SECONDS``. Everything that waits for another thread or process uses a :class:`Wait`.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable
from queue import Empty, SimpleQueue
from typing import Any

from fastdhm.errors import UserError
from fastdhm.system.environment import positive

POLL_S = 0.5  # the longest sleep between two calls of Wait.on
SAY_S = 60.0
LIMIT, LIMIT_S = "FASTDHM_WAIT_SECONDS", 600.0


class WaitedInVain(UserError):
    """What was waited for did not come. Waiting changed nothing."""


class Wait:
    """One wait for ``what``; ``why`` says what delays it, such as the file that is being read.

    Time in which this process itself is stopped (suspended, in a debugger) does not count.
    """

    def __init__(self, what: str, why: Callable[[], str]):
        self._what, self._why = what, why
        self.seconds, self._said = 0.0, 0.0
        self._last = time.monotonic()

    def on(self) -> None:
        """Count the time: call this about every ``POLL_S`` seconds until it comes.

        Raises:
            WaitedInVain: the limit is reached.
        """
        now = time.monotonic()
        self.seconds, self._last = self.seconds + min(now - self._last, 2 * POLL_S), now
        if self.seconds >= limit_s():
            raise WaitedInVain(
                f"{self._what} did not come in {self.seconds:.0f} s: {self._why()}. "
                f"If it is only slow, set {LIMIT}={6 * limit_s():.0f} to wait longer"
            )
        if self.seconds >= max(SAY_S, 2 * self._said):
            self._said = self.seconds
            from fastdhm.system.console import Console  # rich only if there is something to say

            Console(stderr=True).print(f"waiting for {self._what} for {self.seconds:.0f} s: {self._why()}")


def waited_for(work: Callable, items: Iterable, what: str, why: Callable[[], str]) -> Generator[Any]:
    """Yield ``work(item)`` of each item. A thread computes it when it is asked for, and this thread waits for that.

    A read can hang in this process too. If the main thread read, it could report and save nothing meanwhile.
    """
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
        except BaseException as error:  # raised in the thread that waits
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
    """The longest wait in seconds; ``ValueError`` if the user set it to something that is not a number above 0."""
    return positive(LIMIT, LIMIT_S, "seconds")
