"""Files that are either whole or not there."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def out_of_space(error: BaseException) -> bool:
    """Whether ``error`` is about a full disk or quota; torch and safetensors report it as text only."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    text = str(error)
    return "No space left" in text or "file write failed" in text or "unexpected pos" in text
