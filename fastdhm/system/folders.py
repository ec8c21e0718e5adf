"""Folders that only one process writes to at a time."""

import errno
import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from fastdhm.errors import UserError
from fastdhm.system.files import PREFIX, remove_leftovers, writing
from fastdhm.system.paths import shown

LOCK = ".lock"
WAIT_SECONDS = 0.5  # between two looks at a lock that another process has
CANNOT_LOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOTTY)


class AtWork(UserError):
    """Another process holds the folder."""


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
        AtWork: another process, which is named, holds the lock and ``wait`` is false.
        ValueError: nothing can be written there.
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
        raise AtWork(f"{_holder(path)} is at work in {shown(folder)}: wait for it, or stop it")
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


def is_held(folder: Path) -> bool:
    """Whether a process is at work in ``folder``, see :func:`held`. It only asks: nobody meets a lock of ours."""
    path = folder / LOCK
    try:
        if _place(path) in _held:
            return True
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:  # a struct flock of 64-bit Linux: type, whence, start, length, process
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK
    except OSError:
        return False
    finally:
        os.close(file)


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
