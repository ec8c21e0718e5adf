"""Files that are either whole or not there."""

import errno
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastdhm.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; synced and renamed onto ``path`` if all goes well, else gone.

    Raises:
        ValueError: no space left on the disk; ``path`` is as it was.
    """
    temporary = path.with_name(f"{path.name}.tmp")  # what a killed process left there is overwritten by the next
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must outlive a power cut
        finally:
            os.close(folder)
    except Exception as error:
        if out_of_space(error):
            raise UserError(f"no space left to write {path}: make room, or choose another disk") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path, flag: str) -> None:
    """``ValueError`` naming ``flag`` if nothing can be written in ``folder``, which need not be there yet."""
    try:
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        why = None if place.is_dir() else "is no folder"
        why = why or (None if os.access(place, os.W_OK | os.X_OK) else "cannot be written to")
    except OSError as error:
        place, why = folder, f"cannot be reached ({error.strerror})"
    if why:
        raise UserError(f"{flag} is {folder}, and {place} {why}: choose another, or make it writable")


def out_of_space(error: BaseException) -> bool:
    """Whether ``error`` is about a full disk or quota; torch and safetensors report it as text only."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    text = str(error)
    return "No space left" in text or "file write failed" in text or "unexpected pos" in text


def load_without_code(path: Path, what: str) -> Any:
    """What ``torch.save`` wrote to ``path``, on the CPU; executes nothing in it.

    Raises:
        ValueError: cut short, or no such file at all, or one that would execute code; calls it a ``what``.
    """
    import torch  # here, as importing this file is to cost nothing

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of files that are not ours
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        # torch's own message would advise to load it with its code
        raise UserError(f"{path} is no whole {what}, or holds code: it was not loaded") from error
