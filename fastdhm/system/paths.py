"""Paths as people write them: ``~`` and ``$VARIABLES``, and where data lie that nobody placed."""

import logging
import os
import tempfile
from pathlib import Path

from fastdhm.errors import UserError

NAME_BYTES = 120  # of the 255 that a name may have


def expanded(path: str | Path) -> Path:
    """``path`` with ``~`` and variables replaced, unless it is there as it is.

    Raises:
        ValueError: it begins with ``~``, and nobody's home is known; or no file can have that name.
    """
    path = Path(path)
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} holds a zero character, which no path can: write it without")
    if "$" in str(path) and not path.exists():
        path = Path(os.path.expandvars(path))
    try:
        return path.expanduser()
    except RuntimeError as error:  # no HOME and no entry in the list of users, as in a container
        raise UserError(f"{path}: the home folder is not known here; write the whole path") from error


def short_name(name: str) -> str:
    """``name``, cut to what leaves room for more in the name of a file or folder."""
    return os.fsdecode(os.fsencode(name)[:NAME_BYTES]) if len(os.fsencode(name)) > NAME_BYTES else name


def printable(path: str | Path) -> str:
    """A path that any terminal can show: names need not be UTF-8, and then cannot be printed as they are."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def default_data_dir() -> str:
    """``$FASTDHM_DATA``, or ``~/.cache/fastdhm``.

    Raises:
        ValueError: neither is known.
    """
    given = os.environ.get("FASTDHM_DATA")
    try:
        return given or str(Path.home() / ".cache" / "fastdhm")
    except RuntimeError as error:
        raise UserError(
            "there is no home folder here to keep data in: say where by --data-dir, or set FASTDHM_DATA"
        ) from error


def check_current() -> None:
    """``ValueError`` if the current folder was removed: Intel's library ends the process where it finds none."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the current folder is gone: change to one that is there") from error


def place_caches() -> None:
    """Where no home is known, a place for what torch, triton and matplotlib keep: some look for one and fail, some
    make a folder called ``~``. matplotlib says nothing of a cache that it cannot write."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        Path.home()
    except RuntimeError:
        place = os.path.join(tempfile.gettempdir(), f"fastdhm-{os.getuid()}")
        os.environ.setdefault("USER", f"uid{os.getuid()}")
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRITON_HOME"):
            os.environ.setdefault(name, place)
