"""Files that are either whole or absent, and folders that only one process writes to at a time."""

import argparse
import csv
import errno
import fcntl
import io
import os
import pickle
import secrets
import shutil
import socket
import tempfile
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path, PosixPath
from typing import Any

from fastdhm.errors import UserError
from fastdhm.system.paths import shown

LOCK = ".lock"
PREFIX, SUFFIX = ".fastdhm-", ".tmp"  # of a file that is being written
WAIT_SECONDS = 0.5  # between two looks at a lock that another process has
ABANDONED = 24 * 3600  # seconds after which a temporary file of another machine counts as abandoned
# Errors of file systems that cannot sync, or cannot sync a folder (network drives, FUSE); and of those without locks.
CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.ENOTTY)
CANNOT_LOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOTTY)
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
        ValueError: ``path`` is a folder, or cannot be written (a full disk, a read-only one, ...); it is unchanged.
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


def contents(folder: Path) -> set[str]:
    """The names in ``folder``, without what :func:`held` and :func:`replacing` leave when they are killed."""
    return {path.name for path in folder.iterdir() if path.name != LOCK and not path.name.startswith(PREFIX)}


def new_folder(path: Path) -> Path:
    """Make ``path``, or ``path-2``, ``path-3``, ...: the first that does not exist. No other process gets the same."""
    for number in count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError  # count has no end


_held: set[tuple[int, int]] = set()  # lock files that this process holds: closing one anywhere releases the lock
_choosing = threading.Lock()  # between threads of this process, which file locks do not tell apart
_cannot_lock: set[int] = set()  # file systems that the user was warned of


@contextmanager
def held(folder: Path, what: str, say: Callable[[str], None], *, wait: bool = False) -> Iterator[None]:
    """Make ``folder`` if need be, and lock it for this process: no other one writes there.

    Others that find the lock are told ``what`` this process is. The lock ends with the process, however it ends; its
    children, such as loader workers, do not hold it. Where the file system cannot lock, ``say`` gets a warning.
    Temporary files that killed processes left there are removed.

    Raises:
        ValueError: another process, which is named, holds the lock and ``wait`` is false; or nothing can be written
            there.
    """
    path = folder / LOCK
    with writing(path, f"in {shown(folder)}"):
        file = _locked(path, say)
        if file is None and wait:
            say(f"waiting for {_holder(path)}, which is at work in {shown(folder)}")
        while file is None and wait:
            time.sleep(WAIT_SECONDS)
            file = _locked(path, say)
    if file is None:
        raise UserError(f"{_holder(path)} is at work in {shown(folder)}: wait for it, or stop it")
    place = _place(file)
    try:
        with suppress(OSError):  # on a full disk the lock works without this text
            os.truncate(file, 0)
            os.write(file, f"{what} (process {os.getpid()} on {socket.gethostname()})".encode())
        remove_leftovers(folder)
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        _held.discard(place)
        os.close(file)


def _locked(path: Path, say: Callable[[str], None]) -> int | None:
    """The file at ``path``, open and locked by this process; None if another process or thread holds it.

    A lock of lockf belongs to one process; a lock of flock is shared with every forked child.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _choosing:
            with suppress(FileNotFoundError):
                if _place(path) in _held:
                    return None
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if not _lock(file, path, say):
                    os.close(file)
                    return None
                if _place(file) == _place(path):
                    _held.add(_place(file))
                    return file
            except FileNotFoundError:
                pass
            except OSError:
                os.close(file)
                raise
            os.close(file)  # its holder has just removed it: open the new one


def _lock(file: int, path: Path, say: Callable[[str], None]) -> bool:
    """Whether this process has the lock now; true too where the file system cannot lock."""
    with suppress(OSError):
        os.fchmod(file, 0o666)  # whoever may write in the folder may lock it
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in CANNOT_LOCK:
            raise
        device = os.fstat(file).st_dev
        if device not in _cannot_lock:
            _cannot_lock.add(device)
            say(f"{shown(path.parent)}: this file system cannot lock; start nothing else that writes there")
    return True


def _place(file: int | Path) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino


def _holder(path: Path) -> str:
    with suppress(OSError):
        if _place(path) not in _held:  # opening and closing it would release our own lock
            text = path.read_text("utf-8", "replace").strip()
            return text or "another process"
    return f"this process ({os.getpid()})"


def check_writable(folder: Path, flag: str) -> None:
    """``ValueError`` naming ``flag`` if nothing can be written in ``folder``, which need not exist yet."""
    try:
        place = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        why = None if place.is_dir() else "is not a folder" if place.exists() else "is a broken link"
        why = why or (None if os.access(place, os.W_OK | os.X_OK) else "cannot be written to")
    except OSError as error:
        place, why = folder, f"cannot be reached ({error.strerror})"
    if why:
        raise UserError(f"{flag} is {shown(folder)}, and {shown(place)} {why}: choose another, or make it writable")


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


def load_without_code(path: Path, what: str, *, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote to ``path``, on the CPU. No code in the file is executed.

    Raises:
        ValueError: the file is cut short, is of another kind, or would execute code; the message calls it a ``what``.
    """
    import torch  # imported here: importing this file must stay cheap

    try:
        with warnings.catch_warnings(), plain_name(path) as name, torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # about the pickle protocol of files from elsewhere
            return torch.load(name, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        # torch's own message advises to load the file with its code
        code = _code_in(path)
        if code:
            raise UserError(
                f"{shown(path)} contains code ({code}), which is not executed: save only the state_dict()"
            ) from error
        raise UserError(f"{shown(path)} is not a whole {what}, or contains code: it was not loaded") from error


def _harmless() -> list:
    """What training scripts save beside weights: their arguments, paths, and numbers of NumPy."""
    import numpy as np

    made = np.float64().__reduce__()[0]
    kinds = (np.float64, np.float32, np.int64, np.int32, np.bool_)
    renamed = [(made, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [argparse.Namespace, PosixPath, np.dtype, *(type(np.dtype(kind)) for kind in kinds), *renamed]


def _code_in(path: Path) -> str:
    """The first objects in a file of ``torch.save`` that need code to be made; "" if damage hides them."""
    import torch

    with suppress(Exception), plain_name(path) as name, torch.serialization.safe_globals(_harmless()):
        return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(name))[:3])
    return ""


def damaged_part(path: Path) -> str | None:
    """The first damaged part of what ``torch.save`` wrote to ``path``; None if all parts are intact.

    torch writes a checksum of each part but does not check it when it loads. So a bit that a disk or a copy flipped
    would end up in a weight.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            return parts.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as error:
        return str(error)  # a damaged header that torch does not read
