"""Signals that ask a command to end. They are obeyed at once; while a run trains, between two steps."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
LEFT_ALONE = (signal.SIG_IGN, None)  # ignored, as under nohup; a handler that is not Python's
ENDING = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))

PR_SET_PDEATHSIG = 1  # of prctl(2)
A_MOMENT = 0.01  # seconds
TWICE = 0.2  # seconds; `timeout` and shells send the same signal to a process and to its group

_noted: list[tuple[int, float]] = []  # number and time of each signal that counts, since the outermost context began
_only_note: list[bool] = []  # one for each open context, the innermost last


class Stopped(KeyboardInterrupt):
    """The signal ``number`` asked the command to end at once."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def stop_with_parent(parent: int | None = None) -> None:
    """Have the system send this process SIGTERM when the process that started it ends, in whatever way.

    At once, if that was ``parent`` and it is gone already.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent not in (None, os.getppid()):
        os.kill(os.getpid(), signal.SIGTERM)


def noted() -> int | None:
    """The first signal that came; None if none did."""
    return _noted[0][0] if _noted else None


@contextmanager
def end_at_once() -> Iterator[None]:
    """Inside, a signal that asks to end raises :class:`Stopped`, so that open files are closed; a second one kills.

    An ignored signal stays ignored (``nohup``). Worker processes that are forked inside leave the decision to their
    parent.
    """
    with _handling(only_note=False):
        yield


@contextmanager
def stop_signals() -> Iterator[Callable[[], int | None]]:
    """Inside, a signal that asks to end is only noted; the yielded function returns the first one.

    A second one raises :class:`Stopped` at once, a third kills.
    """
    with _handling(only_note=True):
        yield noted


@contextmanager
def _handling(*, only_note: bool) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    unraisable = sys.unraisablehook
    previous = {} if _only_note else {n: handler for n in ENDING if (handler := signal.getsignal(n)) not in LEFT_ALONE}
    _only_note.append(only_note)
    for number in previous:
        signal.signal(number, _handle)
    sys.unraisablehook = partial(_again, otherwise=unraisable)
    try:
        yield
    finally:
        _only_note.pop()
        sys.unraisablehook = unraisable
        for number, handler in previous.items():
            signal.signal(number, handler)
        if not _only_note:
            _noted.clear()


def _handle(number: int, _frame: object) -> None:
    now = time.monotonic()
    if _noted and (now - _noted[-1][1] < TWICE or number == getattr(signal, "SIGXCPU", None)):  # sent every second
        return
    _noted.append((number, now))
    raising = 2 if _only_note[-1] else 1  # which signal raises: earlier ones are only noted, later ones kill
    if len(_noted) == raising:
        raise Stopped(number)
    if len(_noted) > raising:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _again(unraisable: "sys.UnraisableHookArgs", otherwise: Callable[[Any], object]) -> None:
    """Send a signal again, a moment later, if it came while Python cleaned up (``__del__``, a weak reference).

    What is raised there is lost.
    """
    stopped = unraisable.exc_value
    if isinstance(stopped, Stopped):
        _noted.pop()
        later = threading.Timer(A_MOMENT, os.kill, (os.getpid(), stopped.number))
        later.daemon = True
        later.start()
    else:
        otherwise(unraisable)


def _in_a_worker() -> None:
    """Ignore signals that reach the whole process group: the parent obeys them. It ends a worker with SIGTERM."""
    for number in ENDING:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


os.register_at_fork(after_in_child=_in_a_worker)
