"""How a command ends that did not succeed: what a person or a machine caused in a sentence, an error of ours as a file
to attach to a report."""

import errno
import os
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

CONFIGS = ("config.yaml", "compare.yaml")
NETWORK = "look after the network, and try again"
# what to do about what a system call answers; what concerns writing stands in REASONS
REMEDIES = {
    errno.EACCES: "let this user read and write there, or choose another place",
    errno.ENOENT: "give one that is there",
    errno.EISDIR: "name a file",
    errno.ELOOP: "links lead in a circle: remove one",
    errno.EMFILE: "raise `ulimit -n`, or take fewer --workers",
    errno.ENFILE: "other programs hold the machine's files open: close some",
    errno.EAGAIN: "raise `ulimit -u`, or take fewer --workers",
    **dict.fromkeys((errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENETUNREACH), NETWORK),
}
LESS_MEMORY = {
    **dict.fromkeys(("train", "compare"), "take a smaller --batch-size, or --activation-checkpointing true"),
    "embed": "take a smaller --batch-size",
    "data": "take fewer --workers",
}
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")


def cause(error: BaseException, command: str) -> str | None:
    """What a person or a machine did that ended ``command``, and the remedy; None if it was an error of ours."""
    if isinstance(error, UserError):
        return str(error)
    if _is_memory(error):
        told = _short(error) if str(error) else "no more is to be had"
        return f"not enough memory ({told}): {LESS_MEMORY.get(command, 'end other programs, or take a larger machine')}"
    if isinstance(error, HTTPException | URLError):
        return f"a download failed ({_short(getattr(error, 'reason', error))}): {NETWORK}"
    if isinstance(error, OSError):
        return _system(error)
    if isinstance(error, ImportError) and not (error.name or "").startswith("fastdhm"):
        return f"{error.name or 'a library'} cannot be imported ({_short(error)}): install it anew"
    if isinstance(error, RecursionError):
        return "something is nested deeper than Python follows, a YAML file or a network perhaps: make it flatter"
    return None


def _is_memory(error: BaseException) -> bool:
    """Whether memory ran out, the machine's or the device's; torch says it as text."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)


def _system(error: OSError) -> str:
    reason, remedy = REASONS.get(error.errno, (error.strerror or _short(error), ""))
    remedy = REMEDIES.get(error.errno, remedy)
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' and '.join(names)}{': ' * bool(names)}{reason}{'; ' * bool(remedy)}{remedy}"


def _short(error: object) -> str:
    return first_line(error)[:200]


@contextmanager
def belonging_to(folder: Path) -> Iterator[None]:
    """Inside, an unexpected exception is of the run in ``folder``: there its report goes."""
    try:
        yield
    except Exception as error:
        if not hasattr(error, "of_run"):
            error.of_run = folder
        raise


def report_crash(error: BaseException, argv: list[str], facts: Iterable[str]) -> Path | None:
    """Write ``crash-TIME.txt`` with ``facts`` about this machine into the run's folder, else the current one, else that
    of temporary files; its path, or None where nothing could be written."""
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
    for name in CONFIGS if run else ():
        with suppress(OSError):
            yield f"\n{run / name}:\n{(run / name).read_text(encoding='utf-8', errors='backslashreplace')}"
    yield "\n" + "".join(traceback.format_exception(error))
