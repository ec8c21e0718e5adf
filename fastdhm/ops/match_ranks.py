"""Where the right answers stand in rankings by distance, and the head of each ranking, without sorting. CPU only.

Legend: Q queries, G gallery, P matches, N entries left out of one query's ranking, J junk, K nearest entries kept.
"""

import torch
from torch import Tensor

from fastdhm.ops import _extension

available = _extension.available


def match_ranks(
    distances_QG: Tensor,
    matches: tuple[Tensor, Tensor],
    left_out: tuple[Tensor, Tensor],
    junk_J: Tensor,
    top_k: int = 0,
) -> tuple[Tensor, Tensor, int]:
    """How many entries are nearer than each match, and the nearest of each query, by counting in C++.

    rank[p] = #{j < g: d[q, j] <= d[q, g]} + #{j > g: d[q, j] < d[q, g]},    q = query[p], g = gallery[p]

    over the entries j that query q's ranking contains: equal distances keep the gallery's order. A row is copied once
    into a thread's scratch and read there for every few matches; from some 256 matches a query on (128 in float64) they
    are sorted instead and the row looked up among them. Distances are compared exactly, subnormal ones too.

    Args:
        distances_QG: float32 or float64 in host memory, smaller is nearer; any strides, without a copy where a row's
            entries lie side by side.
        matches: ``query_P`` and ``gallery_P``, int64, in order of query and then of gallery.
        left_out: ``query_N`` and ``gallery_N``, likewise: what one query's ranking does not contain.
        junk_J: int64, gallery indices in any order: what no ranking contains.
        top_k: how many of the nearest to return.

    Returns:
        ``rank_P``, int64, 0 for the nearest; ``nearest_QK``, int64, gallery indices, nearest first, -1 where a ranking
        has fewer, K the smaller of ``top_k`` and G; and the first row with a distance that is NaN or infinite, in
        which case the other two mean nothing, or -1.

    Raises:
        ValueError: wrong shapes, dtypes, indices or order, or the C++ extension is not there. No tracing: the row is
            known only once it was computed.
    """
    _extension.require("match_ranks")
    return torch.ops.fastdhm.match_ranks(distances_QG, *matches, *left_out, junk_J, top_k)


def match_ranks_eager(distances_QG, matches, left_out, junk_J, top_k=0):
    """The reference: the rule of :func:`match_ranks` in torch operations, without checks."""
    block_QG = distances_QG.clone()
    block_QG[:, junk_J] = torch.inf
    block_QG[left_out] = torch.inf
    order_QG = block_QG.argsort(dim=1, stable=True)
    nearest_QK = order_QG[:, :top_k]
    nearest_QK = nearest_QK.where(block_QG.gather(1, nearest_QK) < torch.inf, -1)
    wrong_rows = (~distances_QG.isfinite().all(1)).nonzero()[:, 0].tolist()
    return order_QG.argsort(dim=1)[matches], nearest_QK, next(iter(wrong_rows), -1)
