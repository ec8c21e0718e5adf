"""How a failed command ends: with one sentence if the user or the machine caused it, with a report if fastdhm did."""

import errno
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from fastdhm.errors import UserError, first_line
from fastdhm.system.files import REASONS
from fastdhm.system.paths import shown
from fastdhm.system.signals import noted

CONFIGS = ("config.yaml", "compare.yaml")  # of a run, and of a comparison
NETWORK = "check the network, and try again"
# what to do about an error of a system call; REASONS has the errors of writing
REMEDIES = {
    errno.EACCES: "give this user permission to read and write there, or choose another place",
    errno.ENOENT: "give a path that exists",
    errno.EISDIR: "give a file",
    errno.ELOOP: "the links form a circle: remove one",
    errno.EMFILE: "raise `ulimit -n`, or use fewer --workers",
    errno.ENFILE: "close other programs",
    errno.EAGAIN: "raise `ulimit -u`, or use fewer --workers",
    **dict.fromkeys((errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENETUNREACH), NETWORK),
}
SMALLER_STEP = "use a smaller --batch-size, or --activation-checkpointing true; with very many classes, --loss linear"
LESS_MEMORY = {
    **dict.fromkeys(("train", "compare"), SMALLER_STEP),
    "embed": "use a smaller --batch-size",
    "data": "use fewer --workers",
}
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")


def exit_status(error: BaseException) -> int:
    """The exit status of a command that ``error`` ends: see ``cli.main``."""
    number = noted() or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
    if isinstance(error, UserError) and (error.status != UserError.status or not number):
        return error.status
    if number:  # a library may make another exception of the signal's
        return 128 + number
    return 70 if isinstance(error, RecursionError) or cause(error, "") is None else UserError.status


def cause(error: BaseException, command: str) -> str | None:
    """What the user or the machine did that ended ``command``, and what to do; None if the error is fastdhm's own."""
    if isinstance(error, UserError):
        return str(error)
    if _is_memory(error):
        reason = _short(error) if str(error) else "no more is available"
        remedy = LESS_MEMORY.get(command, "close other programs, or use a larger machine")
        return f"not enough memory ({reason}): {remedy}"
    if isinstance(error, HTTPException | URLError):
        return f"a download failed ({_short(getattr(error, 'reason', error))}): {NETWORK}"
    if isinstance(error, OSError):
        return _system(error)
    if isinstance(error, ImportError) and not (error.name or "").startswith("fastdhm"):
        return f"{error.name or 'a library'} cannot be imported ({_short(error)}): reinstall it"
    if isinstance(error, RecursionError):
        return "something is nested too deeply for Python, perhaps a YAML file or a network: make it flatter"
    return None


def _is_memory(error: BaseException) -> bool:
    """Whether the machine or the device ran out of memory; torch says so only in its text."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)


def _system(error: OSError) -> str:
    number = error.errno or 0
    reason, remedy = REASONS.get(number, (error.strerror or _short(error), ""))
    remedy = REMEDIES.get(number, remedy)
    names = [shown(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' and '.join(names)}{': ' * bool(names)}{reason}{'; ' * bool(remedy)}{remedy}"


def _short(error: object) -> str:
    return first_line(error)[:200]


@contextmanager
def belonging_to(folder: Path) -> Iterator[None]:
    """Mark an unexpected exception inside as one of the run in ``folder``: its report goes there."""
    try:
        yield
    except Exception as error:
        vars(error).setdefault("of_run", folder)
        raise


def report_crash(error: BaseException, argv: list[str], facts: Iterable[str]) -> Path | None:
    """Write ``crash-TIME.txt`` with ``facts`` about this machine, and return its path; None if it cannot be written.

    It goes to the run's folder, else to the current folder, else to the folder of temporary files.
    """
    run = getattr(error, "of_run", None)
    text = "\n".join(_report(error, argv, run, facts))
    for folder in (run, Path(), Path(tempfile.gettempdir())):
        if folder is not None and folder.is_dir():
            path = folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
            with suppress(OSError):
                path.write_text(text, encoding="utf-8", errors="backslashreplace")
                return path.absolute()
    return None


def _report(error: BaseException, argv: list[str], run: Path | None, facts: Iterable[str]) -> Iterator[str]:
    yield f"command: {['fastdhm', *argv]}"
    yield from facts
    for config in [run / name for name in CONFIGS] if run else []:
        with suppress(OSError):
            yield f"\n{config}:\n{config.read_text(encoding='utf-8', errors='backslashreplace')}"
    yield "\n" + "".join(traceback.format_exception(error))
