"""Paths as users write them (``~``, ``$VARIABLES``) and as messages show them; the default folder of data."""

import logging
import os
import tempfile
from pathlib import Path

from fastdhm.errors import UserError
from fastdhm.system.streams import visible

NAME_BYTES = 120  # of the 255 that a file name may have


def expanded(path: str | Path) -> Path:
    """``path`` with ``~`` and variables replaced; the ``$`` of a path that exists as written stays.

    Raises:
        ValueError: it begins with ``~`` and the home folder is not known, or it contains a null character.
    """
    path = Path(path)
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} contains a null character, which no path can: remove it")
    if "$" in str(path) and not path.exists():
        path = Path(os.path.expandvars(path))
    try:
        return path.expanduser()
    except RuntimeError as error:  # no HOME and no entry in the list of users, as in a container
        raise UserError(f"{shown(path)}: the home folder is not known here: write the full path") from error


def short_name(name: str) -> str:
    """``name``, cut so that the name of a file or folder has room for more."""
    return os.fsdecode(os.fsencode(name)[:NAME_BYTES]) if len(os.fsencode(name)) > NAME_BYTES else name


def printable(path: str | Path) -> str:
    """A path as valid text: bytes that are not UTF-8 become escapes such as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def shown(path: str | Path) -> str:
    """A path for a message, on one line: as :func:`printable`, and control characters and line ends as escapes."""
    return visible(printable(path)).replace("\n", "\\n").replace("\t", "\\t")


def default_data_dir() -> str:
    """``$FASTDHM_DATA``, or ``~/.cache/fastdhm``.

    Raises:
        ValueError: the variable is not set and the home folder is not known.
    """
    given = os.environ.get("FASTDHM_DATA")
    try:
        return given or str(Path.home() / ".cache" / "fastdhm")
    except RuntimeError as error:
        raise UserError("no home folder to keep data in: give --data-dir, or set FASTDHM_DATA") from error


def check_current() -> None:
    """``ValueError`` if the current folder was deleted: without one, Intel's library ends the process."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the current folder was deleted: change to one that exists") from error


def place_caches() -> None:
    """Where no home folder is known, choose a place for the caches of torch, triton and matplotlib.

    Without it, some of them fail and some make a folder called ``~``. matplotlib's warning of a cache that it cannot
    write is silenced.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        Path.home()
    except RuntimeError:
        place = os.path.join(tempfile.gettempdir(), f"fastdhm-{os.getuid()}")
        os.environ.setdefault("USER", f"uid{os.getuid()}")
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRITON_HOME"):
            os.environ.setdefault(name, place)
