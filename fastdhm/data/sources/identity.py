"""Which images a run was trained and evaluated on: how many, and a digest that a copy of them has too."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastdhm.data.sources.source import Source

Identity = dict[str, dict[str, int | str | None]]
"""Split -> ``count``, and ``digest`` of names, sizes, order and classes; None where it is not known."""


def identity(source: Source) -> dict[str, int | str | None]:
    """What a run keeps of a split."""
    return {"count": len(source), "digest": source.fingerprint()}


def changes(before: Identity, now: Identity) -> list[str]:
    """The changes of a data set, in the splits that both states have: ``train: 80 images, now 81``."""
    found = []
    for split in (name for name in before if name in now):
        old, new = before[split], now[split]
        if old["count"] != new["count"]:
            found.append(f"{split}: {old['count']:,} images, now {new['count']:,}")
        elif None not in (old["digest"], new["digest"]) and old["digest"] != new["digest"]:
            found.append(f"{split}: the same number of images, {new['count']:,}, with other names, labels or content")
    return found
