"""The one console of the package. It prints data as it is, and does not stop when the reader has gone.

``print`` reports progress. It never raises: the work goes on even if nobody reads. ``result`` prints what a command was
asked for, and raises if that cannot be written.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from fastdhm.system.streams import Stream, tell, visible

PLAIN_LINE_SECONDS = 15


class Console(rich.console.Console):
    """A console that prints strings as they are: no markup, no emoji codes, no highlighting, no wrapping.

    Style comes from a ``rich.text.Text`` or the argument ``style``. Tables and rules work as in rich. ``live`` is true
    where a progress bar can be drawn: not in a pipe, even if colours are forced there, and not on a terminal that
    cannot move its cursor.
    """

    def __init__(
        self, stderr: bool = False, *, file: TextIO | None = None, width: int | None = None, quiet: bool = False
    ):
        sizes = ("COLUMNS", "LINES")  # rich accepts any value of these, even 0 and superscript digits
        environ = {k: v for k, v in os.environ.items() if k not in sizes or re.fullmatch("[1-9][0-9]{0,3}", v)}
        self._stream = Stream(file, stderr)
        self._warned = False
        super().__init__(
            file=self._stream,  # type: ignore[arg-type] # to typeshed no class of io is an IO
            stderr=stderr, width=width, quiet=quiet, markup=False, emoji=False, highlight=False, _environ=environ,
        )  # fmt: skip
        self.live = self.is_interactive and self._stream.can_move(environ)

    def print(self, *objects: Any, **how: Any) -> None:
        """Report progress. If that cannot be written, stderr says so once; a reader that has gone is no error."""
        super().print(*objects, **{"soft_wrap": all(isinstance(part, str | Text) for part in objects)} | how)
        lost = self._stream.lost
        if lost and not self.stderr and not self._warned:
            self._warned = True
            tell(f"fastdhm: cannot write to the output ({lost.strerror}); the work goes on")

    def result(self, *objects: Any, **how: Any) -> None:
        """Print what a command was asked for.

        Raises:
            ValueError: it could not be written. A reader that has gone (``| head``) is no error.
        """
        self._stream.lost, self._warned = None, True
        self.print(*objects, **how)
        self._stream.check()

    def render_str(self, text: str, **how: Any) -> Text:
        """A string as ``Text``, without markup and with its control characters as escapes."""
        return super().render_str(visible(text), **how | {"markup": False, "emoji": False, "highlight": False})

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        """The segments of anything, of a ``Text`` too, with the control characters in them as escapes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar up to ``total``, or a plain line now and then; yields ``advance(count)``."""
        columns = words("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=self, transient=True, disable=not self.live) as progress:
            task, is_time = progress.add_task(what, total=total), every(PLAIN_LINE_SECONDS)

            def advance(count: int = 1) -> None:
                progress.advance(task, count)
                if not self.live and is_time():
                    now = progress.tasks[0]
                    left = "" if now.time_remaining is None else f", {now.time_remaining / 60:.1f} min left"
                    self.print(f"{what}: {now.completed:,.0f} of {total:,}{left}")

            yield advance


def words(fields: str, style: str = "none") -> TextColumn:
    """A column of a progress bar that shows fields of its task as they are."""
    return TextColumn(fields, style=style, markup=False)


def every(seconds: float) -> Callable[[], bool]:
    """A function that returns true when ``seconds`` have passed since it last did."""
    last = time.monotonic()

    def is_time() -> bool:
        nonlocal last
        due = time.monotonic() - last > seconds
        last = time.monotonic() if due else last
        return due

    return is_time


def paste(*arguments: object) -> str:
    """A command to paste into a shell; a word is quoted if it must be: ``fastdhm train --resume 'my runs/1'``.

    A word that the output cannot show is written as its bytes, as ``ls`` does: ``$'caf\\xe9'``.
    """
    return " ".join(map(_quoted, map(str, arguments)))


def _quoted(word: str) -> str:
    with suppress(UnicodeEncodeError):
        word.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
        if word.isprintable():
            return shlex.quote(word)
    plain = {byte: chr(byte) for byte in range(32, 127) if chr(byte) not in "\\'"}
    return "$'" + "".join(plain.get(byte, f"\\{byte:03o}") for byte in os.fsencode(word)) + "'"
