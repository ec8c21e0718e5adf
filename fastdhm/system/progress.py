"""A count with the time left: a progress bar on a terminal, else a plain line now and then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext


def progress_bar(description: str, total: int, enabled: bool) -> AbstractContextManager[Callable[[int], None]]:
    """A context that gives ``advance(count)``."""
    if not enabled:
        return nullcontext(lambda count: None)
    from fastdhm.system.console import Console  # imported here: importing the data package must stay cheap

    return Console(stderr=True).counting(description, total)
