"""stdout and stderr that take anything: any character, a reader who has gone, a full disk.

Apart from the console for the command line's sake, which is to answer before rich is imported.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import sys
from contextlib import suppress
from typing import TextIO

from fastdhm.errors import UserError

# what a terminal would obey, and bytes of a name that are no characters; line ends and tabs are ours
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
PLAINER = str.maketrans({"±": "+-", "…": "."})  # our own signs, and rich's, where the output is not UTF-8


class Stream(io.TextIOBase):
    """stdout, stderr or a given file, whose ``write`` never raises.

    ``lost`` is why the last text was not written, if a reader is there to miss it. One who has gone (a closed pipe or
    terminal) misses nothing.
    """

    def __init__(self, file: TextIO | None = None, stderr: bool = False):
        self._file, self._stderr = file, stderr
        self.lost: OSError | None = None

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

    def check(self) -> None:
        """``ValueError`` if the last text was lost."""
        if self.lost:
            raise UserError(f"the result could not be written to the output: {self.lost.strerror}")

    def _try(self, what: str, *arguments: str) -> None:
        file = self._to
        if file is None:
            self.lost = OSError(errno.EBADF, "it is closed")
            return
        try:
            getattr(file, what)(*arguments)
        except OSError as error:
            if not _reader_gone(error, file):
                self.lost = error
            elif file in (sys.stdout, sys.stderr):
                _to_nowhere(file)
        except ValueError:  # closed in this process, on purpose
            pass


def tell(text: str) -> None:
    """A line on stderr."""
    _line(Stream(stderr=True), text)


def narrate(text: str) -> None:
    """Lines on stdout about what is being done; if nobody can read them, so be it."""
    _line(Stream(), text)


def answer(text: str) -> None:
    """Lines on stdout that were asked for; ``ValueError`` if they cannot be written, other than to a reader who has
    gone (``| head``)."""
    stream = Stream()
    _line(stream, text)
    stream.check()


def _line(stream: Stream, text: str) -> None:
    stream.write(visible(text) + "\n")
    stream.flush()


def visible(text: str) -> str:
    """``text`` with every character that is not to be seen as an escape; a byte that is no character as ``\\xe9``."""
    return UNSEEN.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps such a byte of a name
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def ready_streams() -> None:
    """Make this process's streams fit for anything: call it once, when a command starts.

    Characters that the encoding lacks are written as escapes, also by others than us (warnings). A descriptor that was
    closed is opened onto nothing, or the next file that is opened would be in its place.
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
