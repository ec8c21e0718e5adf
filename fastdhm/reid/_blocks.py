"""Blocks of rows that are computed at a time: so many that they fit into memory, each by one of several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Blocks = list[tuple[int, int]]  # first and last row of each


@dataclass(frozen=True)
class Share:
    """What one of several processes computes: every ``count``-th block of rows from number ``rank`` on."""

    rank: int
    count: int
    join: Callable[[Tensor, int, int], Tensor]
    """``join(own, rows, total)``: all of ``total`` rows, in order, for this process's, of blocks of ``rows``."""

    def of(self, blocks: Blocks) -> Blocks:
        """Those of ``blocks`` that this process computes."""
        return blocks[self.rank :: self.count]

    def joined(self, own: Tensor, blocks: Blocks) -> Tensor:
        """The rows of all ``blocks`` for those of this process."""
        return self.join(own, blocks[0][1], blocks[-1][1])


ALONE = Share(0, 1, lambda own, rows, total: own)


def runs(num_queries: int, row_bytes: int, chunk_mib: float, multiple: int = 1) -> Blocks:
    """(first, last) of runs of queries whose rows fit into ``chunk_mib``: as many multiples of ``multiple``, or one."""
    if chunk_mib <= 0:
        raise ValueError(f"chunk_mib is {chunk_mib}: must be above 0")
    rows = max(1, int(chunk_mib * 2**20 / row_bytes) // multiple) * multiple
    return blocks_of(num_queries, rows)


def blocks_of(num_queries: int, rows: int) -> Blocks:
    """(first, last) of ``rows`` queries at a time."""
    return [(first, min(first + rows, num_queries)) for first in range(0, num_queries, rows)]
