"""stdout and stderr that accept anything: any character, a reader that has gone, a full disk.

This is not in ``console``: the command line must be able to answer before rich is imported.
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

# control characters but line ends and tabs, and the bytes of a name that are not characters
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
PLAINER = str.maketrans({"±": "+-", "…": "."})  # signs of fastdhm and rich, where the output is not UTF-8


class Stream(io.TextIOBase):
    """stdout, stderr or a given file, whose ``write`` never raises.

    ``lost`` is the error if the last text was not written; None if only the reader has gone (a closed pipe or
    terminal).
    """

    def __init__(self, file: TextIO | None = None, stderr: bool = False):
        self._file, self._stderr = file, stderr
        self.lost: OSError | None = None

    @property
    def _to(self) -> TextIO | None:
        file = self._file or (sys.stderr if self._stderr else sys.stdout)
        return getattr(file, "rich_proxied_file", file)  # under a progress bar, rich replaces stdout

    @property
    def encoding(self) -> str:  # type: ignore[override] # typeshed's is an attribute, in io it is read-only too
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
        return super().fileno() if self._to is None else self._to.fileno()  # that of io says there is none

    def isatty(self) -> bool:
        try:
            return self._to is not None and self._to.isatty()
        except (OSError, ValueError, AttributeError):  # closed
            return False

    def can_move(self, environ: dict[str, str]) -> bool:
        """Whether this is a terminal of known width that can move its cursor."""
        known = environ.get("TERM", "").lower() not in ("", "dumb", "unknown")
        try:
            return known and self.isatty() and ("COLUMNS" in environ or os.get_terminal_size(self.fileno()).columns > 0)
        except OSError:
            return False

    def check(self) -> None:
        """``ValueError`` if the last text was lost."""
        if self.lost:
            raise UserError(f"cannot write the result to the output: {self.lost.strerror}")

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
                _discard(file)
        except ValueError:  # closed in this process, on purpose
            pass


def tell(text: str) -> None:
    """Print a line on stderr."""
    _line(Stream(stderr=True), text)


def narrate(text: str) -> None:
    """Print on stdout what is being done; it is no error if that cannot be written."""
    _line(Stream(), text)


def answer(text: str) -> None:
    """Print on stdout what was asked for; ``ValueError`` if it cannot be written.

    A reader that has gone (``| head``) is no error.
    """
    stream = Stream()
    _line(stream, text)
    stream.check()


def _line(stream: Stream, text: str) -> None:
    stream.write(visible(text) + "\n")
    stream.flush()


def visible(text: str) -> str:
    """``text`` with control characters as escapes, and a byte that is not a character as ``\\xe9``."""
    return UNSEEN.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a name that is not a character
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def ready_streams() -> None:
    """Make this process's streams accept any text: call it once, when a command starts.

    Characters that the encoding lacks are written as escapes, also in warnings of other libraries. A closed descriptor
    is opened on ``/dev/null``; otherwise the next file that is opened would take its place.
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
    """Write what is left in the buffers, or drop it: if the interpreter failed to at exit, the status would change."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _discard(stream)
        except AttributeError:  # None: it was closed from the start
            pass


def _reader_gone(error: OSError, file: TextIO) -> bool:
    """Whether the reader of a pipe, a connection or a terminal has gone; a disk can also answer EIO."""
    if isinstance(error, ConnectionError):  # a broken pipe is one
        return True
    return error.errno == errno.EIO and not stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _discard(file: TextIO) -> None:
    """Drop all that is still written to ``file``, by any code."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)
