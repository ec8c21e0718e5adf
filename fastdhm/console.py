"""The one console of the package: what is data is printed as data, and a reader who is gone stops nothing.

``print`` narrates: it never raises, as nobody reading is no reason to stop. ``result`` prints what a command was asked
for, and says if that could not be written.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from fastdhm.errors import UserError

PLAIN_LINE_SECONDS = 15
# what a terminal would obey, and bytes of a name that are no characters; line ends and tabs are ours
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
PLAINER = str.maketrans({"±": "+-", "…": "."})  # our own signs, and rich's, where the output is not UTF-8


class Console(rich.console.Console):
    """A console that prints strings as they are: no markup, no emoji codes, no highlighting, no wrapping.

    Style comes from a ``rich.text.Text`` or the argument ``style``. Tables and rules work as in rich. ``live`` tells
    whether a bar can be drawn: not into a pipe, whatever colours it is promised, nor on a terminal whose cursor does
    not move.
    """

    def __init__(self, stderr: bool = False, *, file: TextIO | None = None, width: int | None = None):
        sizes = ("COLUMNS", "LINES")  # rich believes any of their values, 0 and superscripts too
        environ = {k: v for k, v in os.environ.items() if k not in sizes or re.fullmatch("[1-9][0-9]{0,3}", v)}
        self._stream = _Stream(file, stderr)
        self._told = False
        super().__init__(
            file=self._stream, stderr=stderr, width=width, markup=False, emoji=False, highlight=False, _environ=environ
        )
        self.live = self.is_interactive and self._stream.can_move(environ)

    def print(self, *objects: Any, **how: Any) -> None:
        """Narrate; what cannot be written is told once on stderr, and not at all where the reader has gone."""
        super().print(*objects, **{"soft_wrap": all(isinstance(part, str | Text) for part in objects)} | how)
        lost = self._stream.lost
        if lost and not self.stderr and not self._told:
            self._told = True
            Console(stderr=True).print(
                f"fastdhm: what is printed cannot be written ({_reason(lost)}); the work goes on"
            )

    def result(self, *objects: Any, **how: Any) -> None:
        """Print what a command was asked for.

        Raises:
            ValueError: it could not be written, other than to a reader that has gone (``| head``).
        """
        self._stream.lost, self._told = None, True
        self.print(*objects, **how)
        if self._stream.lost:
            raise UserError(f"the result could not be written to the output: {_reason(self._stream.lost)}")

    def render_str(self, text: str, **how: Any) -> Text:
        """A string as text, with nothing in it that means more than itself."""
        return super().render_str(_visible(text), **how | {"markup": False, "emoji": False, "highlight": False})

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        """The segments of anything, of a ``Text`` too, with nothing in them that a terminal would obey."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(_visible(segment.text), segment.style)

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar that counts to ``total``, or now and then a plain line; yields ``advance(count)``."""
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
    """A column of a bar that shows fields of its task as they are."""
    return TextColumn(fields, style=style, markup=False)


def every(seconds: float) -> Callable[[], bool]:
    """A function that is true when so many seconds have passed since it last was."""
    last = time.monotonic()

    def is_time() -> bool:
        nonlocal last
        due = time.monotonic() - last > seconds
        last = time.monotonic() if due else last
        return due

    return is_time


def paste(*arguments: object) -> str:
    """A command to paste into a shell, each word quoted where it must be: ``fastdhm train --resume 'my runs/1'``.

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


def ready_streams() -> None:
    """Make stdin, stdout and stderr of this process fit for anything: call it once, when a command starts.

    Characters that the encoding lacks are written as escapes, also by others than us (``--help``, warnings). A
    descriptor that was closed is opened onto nothing, or the next file that is opened would be in its place.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def settle_streams() -> None:
    """Write what is left in the buffers, or drop it: the interpreter's own attempt at exit would change the status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _to_nowhere(stream)
        except AttributeError:  # None: it was closed from the start
            pass


class _Stream(io.TextIOBase):
    """stdout, stderr or a given file; writing never raises. ``lost`` is why the last text was not written, if a reader
    is there to miss it."""

    def __init__(self, file: TextIO | None, stderr: bool):
        self._file, self._stderr = file, stderr
        self.lost: Exception | None = None

    @property
    def _to(self) -> TextIO | None:
        file = self._file or (sys.stderr if self._stderr else sys.stdout)
        return getattr(file, "rich_proxied_file", file)  # under a bar, rich puts itself in the place of stdout

    @property
    def encoding(self) -> str:
        return getattr(self._to, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            text = text.translate(PLAINER).encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def fileno(self) -> int:
        return self._to.fileno()

    def isatty(self) -> bool:
        try:
            return self._to.isatty()
        except (OSError, ValueError, AttributeError):  # closed
            return False

    def can_move(self, environ: dict[str, str]) -> bool:
        """Whether it is a terminal that can move its cursor over lines of known length."""
        known = environ.get("TERM", "").lower() not in ("", "dumb", "unknown")
        try:
            return known and self.isatty() and ("COLUMNS" in environ or os.get_terminal_size(self.fileno()).columns > 0)
        except OSError:
            return False

    def _try(self, what: str, *arguments: str) -> None:
        file = self._to
        if file is None:
            self.lost = OSError(errno.EBADF, "it is closed")
            return
        try:
            getattr(file, what)(*arguments)
        except ValueError:  # closed in this process, on purpose
            pass
        except OSError as error:
            if not _reader_gone(error, file):
                self.lost = error
            elif file in (sys.stdout, sys.stderr):
                _to_nowhere(file)


def _visible(text: str) -> str:
    """``text`` with every character that is not to be seen as an escape; a byte that is no character as ``\\xe9``."""
    return UNSEEN.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps such a byte of a name
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _reader_gone(error: OSError, file: TextIO) -> bool:
    """Whether a pipe, a connection or a terminal has been left by who read it; a disk can also say EIO."""
    if isinstance(error, ConnectionError):  # a broken pipe is one
        return True
    return error.errno == errno.EIO and not stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _to_nowhere(file: TextIO) -> None:
    """Let all that is still written to ``file`` vanish, whoever writes it."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
