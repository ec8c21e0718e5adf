"""A count with time left: a bar on a terminal, else a plain line now and then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext


def progress_bar(description: str, total: int, enabled: bool) -> AbstractContextManager[Callable[[int], None]]:
    """A context that gives ``advance(count)``."""
    if not enabled:
        return nullcontext(lambda count: None)
    from fastdhm.system.console import Console  # here, as importing the data package is to cost nothing

    return Console(stderr=True).counting(description, total)
