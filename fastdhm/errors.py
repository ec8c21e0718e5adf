"""The exception for mistakes that the user can fix, and the wording that error messages share."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what the user gave: the message names the value, the rule and the remedy.

    The command line prints it without a traceback; from Python it is a ``ValueError``.
    """

    status = 2  # of a command that it ends


def unknown(kind: str, value: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in ``known``: it lists the known names and suggests the nearest."""
    known = list(known)
    return UserError(f"unknown {kind} {value!r}{did_you_mean(str(value), known)} (known: {', '.join(known)})")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` with the nearest of the ``known`` names; empty if none is near."""
    nearest = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def first_line(error: object) -> str:
    """The first line of an exception's message, or the name of its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def few(names: Sequence[str], shown: int = 5) -> str:
    """The first ``shown`` names, and how many more there are."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more or "none"


def counted(count: int, one: str, several: str | None = None) -> str:
    """``1 file``, ``2 files``; ``several`` is the plural where it needs more than an s."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
