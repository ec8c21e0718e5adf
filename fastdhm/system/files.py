"""Files that are either whole or not there, and folders that one process writes to at a time."""

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

LOCK = ".lock"
PREFIX, SUFFIX = ".fastdhm-", ".tmp"  # of what is being written
WAIT_SECONDS = 0.5  # between two looks at a lock that another process has
ABANDONED = 24 * 3600  # seconds after which a temporary file of another machine is nobody's
# What file systems answer that cannot sync, or not a folder (network drives, FUSE), and those that cannot lock.
CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.ENOTTY)
CANNOT_LOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOTTY)
FULL = "make room, or choose another disk"
CLOSED = "make it writable, or choose another folder"
# why nothing can be written, and what to do
REASONS = {
    errno.ENOSPC: ("no space left", FULL),
    errno.EDQUOT: ("no space left in the quota", FULL),
    errno.EFBIG: ("larger than files may be here", "raise `ulimit -f`, or choose another disk"),
    errno.EROFS: ("the file system is read-only", CLOSED),
    errno.EACCES: ("permission denied", CLOSED),
    errno.EPERM: ("not permitted", CLOSED),
    errno.EIO: ("the disk failed", "look after it, or choose another"),
    errno.ESTALE: ("the network drive is gone", "mount it again, or choose another"),
    errno.ENOTDIR: ("what should be its folder is none", "choose another"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; synced and renamed onto ``path`` if all goes well, else gone.

    Its name is of this process alone, so that two writers of ``path`` never meet: the last to end wins. A ``path`` that
    is a link stays one; a device or a pipe is written to.

    Raises:
        ValueError: ``path`` is a folder, or cannot be written (a full disk, a read-only one, ...) and is as it was.
    """
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file")
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
def writing(path: Path, shown: str = "") -> Iterator[None]:
    """``ValueError``, with the reason and what to do, where what is done inside cannot write ``path``."""
    try:
        yield
    except Exception as error:
        reason = why_not_written(error, path)
        if reason is None:
            raise
        raise UserError(f"cannot write {shown or path}: {'; '.join(reason)}") from error


def write_text(path: Path, text: str) -> None:
    """Write ``path`` by :func:`replacing`, in UTF-8 whatever the locale; a byte of a name that is no character as an
    escape."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any] | Iterable[Any]]) -> None:
    """Write a table as :func:`write_text`; a row that is a mapping may lack columns."""
    columns, text = list(columns), io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([row.get(c, "") for c in columns] if isinstance(row, Mapping) else row for row in rows)
    write_text(path, text.getvalue())


def sync(path: Path) -> None:
    """Have the disk hold ``path``, where the file system can be told to."""
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
    """Why ``path`` or a file beside it could not be written, and what to do; None if ``error`` is of something else.

    torch and safetensors report a failed write as text, at best with the number in the error before it.
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
    return REASONS.get(cause.errno)


@cache
def _here() -> str:
    """A mark of the machine and its process numbers: a container has numbers of its own."""
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
    """Remove what killed processes were writing in ``folder``."""
    for leftover in filter(_is_leftover, folder.iterdir()):
        with suppress(OSError):
            leftover.unlink()


def contents(folder: Path) -> set[str]:
    """The names in ``folder``, but for what :func:`held` and :func:`replacing` leave when they are killed."""
    return {path.name for path in folder.iterdir() if path.name != LOCK and not path.name.startswith(PREFIX)}


def new_folder(path: Path) -> Path:
    """Make ``path``, or ``path-2``, ``path-3``, ...: the first that is not there, which is nobody else's then."""
    for number in count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError  # count has no end


_held: set[tuple[int, int]] = set()  # what this process holds: to close any file of it would let go of the lock
_choosing = threading.Lock()  # between two threads of this process, which the system takes for one
_cannot_lock: set[int] = set()  # file systems of which it was said


@contextmanager
def held(folder: Path, what: str, say: Callable[[str], None], *, wait: bool = False) -> Iterator[None]:
    """Make ``folder`` if need be, and hold it for ``what`` this process is: nobody else writes there.

    The lock goes with the process, however it ends; its children, such as loader processes, do not hold it. Where the
    file system cannot lock, ``say`` is told what is missing. What killed processes were writing there is removed.

    Raises:
        ValueError: another process holds it, which is named, unless this one is to ``wait`` for it; or nothing can be
            written there.
    """
    path = folder / LOCK
    with writing(path, f"in {folder}"):
        file = _locked(path, say)
        if file is None and wait:
            say(f"waiting for {_holder(path)}, at work in {folder}")
        while file is None and wait:
            time.sleep(WAIT_SECONDS)
            file = _locked(path, say)
    if file is None:
        raise UserError(f"{_holder(path)} is at work in {folder}: wait for it, or stop it")
    place = _place(file)
    try:
        with suppress(OSError):  # a full disk: the lock holds all the same
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
    """The file at ``path``, open and locked by this process; None if another holds it, or another thread of this one.

    lockf's locks are the process's own, where flock's are shared with every child that it forks.
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
            os.close(file)  # its holder removed it just then: there is another by now


def _lock(file: int, path: Path, say: Callable[[str], None]) -> bool:
    """Whether this process has the lock now, or none can be had here."""
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
            say(f"{path.parent}: this file system cannot lock; start nothing else that writes there")
    return True


def _place(file: int | Path) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino


def _holder(path: Path) -> str:
    with suppress(OSError):
        if _place(path) not in _held:  # reading it and closing it would let go of our own lock
            text = path.read_text("utf-8", "replace").strip()
            return text or "another process"
    return f"this process ({os.getpid()})"


def check_writable(folder: Path, flag: str) -> None:
    """``ValueError`` naming ``flag`` if nothing can be written in ``folder``, which need not be there yet."""
    try:
        place = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        why = None if place.is_dir() else "is no folder" if place.exists() else "is a link that leads nowhere"
        why = why or (None if os.access(place, os.W_OK | os.X_OK) else "cannot be written to")
    except OSError as error:
        place, why = folder, f"cannot be reached ({error.strerror})"
    if why:
        raise UserError(f"{flag} is {folder}, and {place} {why}: choose another, or make it writable")


@contextmanager
def plain_name(path: Path) -> Iterator[str]:
    """A name of ``path`` for libraries that take only characters, where its own has bytes that are none."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        itself = not path.name.isascii()  # then it must be there; else only its folder
        descriptor = os.open(path if itself else path.parent, os.O_RDONLY)
        try:
            yield f"/proc/self/fd/{descriptor}" + f"/{path.name}" * (not itself)
        finally:
            os.close(descriptor)
    else:
        yield str(path)


def load_without_code(path: Path, what: str, *, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote to ``path``, on the CPU; executes nothing in it.

    Raises:
        ValueError: cut short, or no such file at all, or one that would execute code; calls it a ``what``.
    """
    import torch  # here, as importing this file is to cost nothing

    try:
        with warnings.catch_warnings(), plain_name(path) as name, torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # about the pickle protocol of files that are not ours
            return torch.load(name, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        # torch's own message would advise to load it with its code
        code = _code_in(path)
        if code:
            raise UserError(f"{path} holds code ({code}), which is not run: save the state_dict() alone") from error
        raise UserError(f"{path} is no whole {what}, or holds code: it was not loaded") from error


def _harmless() -> list:
    """What training scripts save beside weights: their arguments, folders, and a number that NumPy counted."""
    import numpy as np

    made = np.float64().__reduce__()[0]
    kinds = (np.float64, np.float32, np.int64, np.int32, np.bool_)
    renamed = [(made, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [argparse.Namespace, PosixPath, np.dtype, *(type(np.dtype(kind)) for kind in kinds), *renamed]


def _code_in(path: Path) -> str:
    """The first things in a file of ``torch.save`` that only running code could make; "" where damage hides them."""
    import torch

    with suppress(Exception), plain_name(path) as name, torch.serialization.safe_globals(_harmless()):
        return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(name))[:3])
    return ""


def damaged_part(path: Path) -> str | None:
    """The first part of what ``torch.save`` wrote to ``path`` that is not what was written; None if all of it is.

    torch writes a checksum of each part and does not look at it when it loads: a bit that a disk or a copy turned over
    would become a weight.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            return parts.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as error:
        return str(error)  # a damaged header, which torch read otherwise
