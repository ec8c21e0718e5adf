"""The one exception that means "the user can fix this"."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what the user gave: the message names the value, the rule and the remedy.

    The command line prints it without a traceback; from Python it is a ``ValueError``.
    """


def unknown(kind: str, value: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not one of ``known``: says the known ones and the nearest."""
    known = list(known)
    nearest = get_close_matches(str(value), known, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return UserError(f"unknown {kind} {value!r}{hint} (known: {', '.join(known)})")
