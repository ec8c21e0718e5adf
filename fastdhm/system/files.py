"""Files that are either whole or absent, and why one cannot be written."""

import csv
import errno
import hashlib
import io
import os
import secrets
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from fastdhm.errors import UserError
from fastdhm.system.paths import shown

PREFIX, SUFFIX = ".fastdhm-", ".tmp"  # of a file that is being written
READ_BYTES = 1 << 22
ABANDONED = 24 * 3600  # seconds after which a temporary file of another machine counts as abandoned
# Errors of file systems that cannot sync, or cannot sync a folder (network drives, FUSE); and of those without locks.
CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.ENOTTY)
FULL = "free some space, or choose another disk"
CLOSED = "make it writable, or choose another folder"
# why a file cannot be written, and what to do
REASONS = {
    errno.ENOSPC: ("no space left", FULL),
    errno.EDQUOT: ("no space left in the quota", FULL),
    errno.EFBIG: ("larger than a file may be here", "raise `ulimit -f`, or choose another disk"),
    errno.EROFS: ("the file system is read-only", CLOSED),
    errno.EACCES: ("permission denied", CLOSED),
    errno.EPERM: ("not permitted", CLOSED),
    errno.EIO: ("the disk failed", "check it, or choose another"),
    errno.ESTALE: ("the network drive is gone", "mount it again, or choose another"),
    errno.ENOTDIR: ("a folder in its path is a file", "choose another"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; synced and renamed to ``path`` if all goes well, else removed.

    Each process uses a name of its own, so two writers of ``path`` do not disturb each other: the last to finish wins.
    If ``path`` is a link, it stays one; a device or a pipe is written to directly.

    Raises:
        ValueError: ``path`` is a folder, is in none, or cannot be written (a full disk, ...); it is unchanged.
    """
    if path.is_dir():
        raise UserError(f"cannot write {shown(path)}: it is a folder; give a file")
    with writing(path):
        if path.exists() and not path.is_file():
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder, "file")
                with open(Path(folder, "file"), "rb") as written, open(path, "wb") as device:
                    shutil.copyfileobj(written, device)
            return
        place = path.resolve()
        if not place.parent.exists():
            raise UserError(f"cannot write {shown(path)}: there is no folder {shown(place.parent)}; make it first")
        temporary = place.with_name(f"{PREFIX}{_here()}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}")
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, place)
            sync(place.parent)  # the rename itself must outlive a power cut
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, what: str = "") -> Iterator[None]:
    """``ValueError`` with the reason and what to do if ``path``, or ``what`` it is called, cannot be written inside."""
    try:
        yield
    except Exception as error:
        reason = why_not_written(error, path)
        if reason is None:
            raise
        raise UserError(f"cannot write {what or shown(path)}: {'; '.join(reason)}") from error


def write_text(path: Path, text: str) -> None:
    """Write ``path`` with :func:`replacing`, in UTF-8 whatever the locale; bytes that are not characters as escapes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any] | Iterable[Any]]) -> None:
    """Write a table as :func:`write_text` does; a row that is a mapping may lack columns."""
    columns, text = list(columns), io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([row.get(c, "") for c in columns] if isinstance(row, Mapping) else row for row in rows)
    write_text(path, text.getvalue())


def sha256_of(path: Path) -> str:
    """The checksum of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make sure that ``path`` is on the disk, where the file system can sync."""
    try:
        file = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written to but not listed
        return
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(file)


def why_not_written(error: BaseException, path: Path) -> tuple[str, str] | None:
    """Why ``path`` or a file beside it could not be written, and what to do; None if ``error`` has another cause.

    torch and safetensors report a failed write as text; at best, the error before it has the error number.
    """
    if isinstance(error, UserError):
        return None
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        text = str(error)
        torn = any(words in text for words in ("No space left", "file write failed", "unexpected pos"))
        return REASONS[errno.ENOSPC] if torn else None
    if isinstance(cause.filename, (str, bytes)):
        named, place = Path(os.fsdecode(cause.filename)), path.resolve()
        if not {named, named.parent} & {*path.parents, *place.parents}:
            return None
    return REASONS.get(cause.errno or 0)


@cache
def _here() -> str:
    """A mark of this machine and its process numbers: each container has numbers of its own."""
    with suppress(OSError):
        return f"{zlib.crc32((socket.gethostname() + os.readlink('/proc/self/ns/pid')).encode()):08x}"
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _is_leftover(path: Path) -> bool:
    """Whether ``path`` is a temporary file of :func:`replacing` whose process is gone."""
    if not (path.name.startswith(PREFIX) and path.name.endswith(SUFFIX)):
        return False
    machine, _, rest = path.name.removeprefix(PREFIX).partition("-")
    process = rest.partition("-")[0]
    if machine == _here() and process.isdecimal():
        return not _lives(int(process))
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > ABANDONED
    return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's
        return True
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in ``folder``."""
    for leftover in filter(_is_leftover, folder.iterdir()):
        with suppress(OSError):
            leftover.unlink()


@contextmanager
def plain_name(path: Path) -> Iterator[str]:
    """A name of ``path`` in valid characters, for libraries that accept no other bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        itself = not path.name.isascii()  # then the file must exist; else only its folder
        descriptor = os.open(path if itself else path.parent, os.O_RDONLY)
        try:
            yield f"/proc/self/fd/{descriptor}" + f"/{path.name}" * (not itself)
        finally:
            os.close(descriptor)
    else:
        yield str(path)
