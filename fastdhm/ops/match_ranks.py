"""The ranks of the right matches by distance, and the first entries of each ranking, without sorting. CPU only.

Legend: Q queries, G gallery, P matches, N entries left out of one query's ranking, J junk, K nearest entries.
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
    """The rank of each match, and the nearest entries of each query, by counting in C++.

    rank[p] = #{j < g: d[q, j] <= d[q, g]} + #{j > g: d[q, j] < d[q, g]},    q = query[p], g = gallery[p]

    over the entries j in query q's ranking: equal distances keep the gallery's order. A row is copied once into a
    thread's scratch memory and read there once for every few matches. From about 256 matches per query on (128 in
    float64), the matches are sorted instead, and the row's entries are looked up among them. Distances are compared
    exactly, subnormal ones too.

    Args:
        distances_QG: float32 or float64 in host memory, smaller is nearer; any strides, without a copy if the entries
            of a row are contiguous.
        matches: ``query_P`` and ``gallery_P``, int64, in order of query and then of gallery.
        left_out: ``query_N`` and ``gallery_N``, in the same order: entries that one query's ranking leaves out.
        junk_J: int64, gallery indices in any order: entries that every ranking leaves out.
        top_k: how many of the nearest to return.

    Returns:
        ``rank_P``, int64, 0 for the nearest; ``nearest_QK``, int64, gallery indices, nearest first, -1 if a ranking
        has fewer, K the smaller of ``top_k`` and G; and the first row with a NaN or infinite distance, or -1. If there
        is such a row, the other two results have no meaning.

    Raises:
        ValueError: wrong shapes, dtypes, indices or order, or no C++ extension. The op cannot be traced, as it
            returns a number from the data.
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
