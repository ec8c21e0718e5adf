"""The rank of each match in the ranking of its query, without keeping the ranking.

Average precision and the CMC curve need nothing but these ranks. Three backends give the same results:

- ``cpp``, for distances in host memory: an op that counts the entries nearer than each match, without a sort;
- ``numpy``, if the extension was not built: sorts the values of a row, not their indices, and searches each match in
  them (numpy sorts a row of 20,000 numbers in 39 us, its argsort takes 205, a stable argsort 1,120). Each of several
  threads takes a few rows, so that a row is still in the cache at its second use;
- ``torch``, for any device, all rows at once.

Legend: Q queries of the block, G gallery, P matches, K entries kept, N candidates for them.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastdhm.ops import match_ranks as op
from fastdhm.reid._protocol import Pairs, SameIdentity

BLOCK_BYTES = 2**20  # distances for one thread at a time: they and their sorted copy fit into the second-level cache


@dataclass(frozen=True)
class Places:
    """The result for a block of queries, in host memory; queries are counted from the first of the block."""

    query_P: np.ndarray  # ascending
    rank_P: np.ndarray  # valid gallery entries that are nearer, or as near and earlier in the gallery
    index_QK: np.ndarray  # the nearest valid entries, nearest first; -1 where a query has fewer
    distance_QK: np.ndarray  # infinite there


def tensor_of(values) -> Tensor:
    """A tensor that shares the memory of an array. The array may be read-only: no function here writes to its input."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if isinstance(values, np.ndarray) and any(stride < 0 for stride in values.strides):
            values = values.copy()  # torch has no negative strides
        return torch.as_tensor(values).detach()


def place(
    distances_QG: Tensor, first: int, same_identity: SameIdentity, top_k: int, impl: str = "auto"
) -> list[Places]:
    """The ranks of the matches, in parts, in order of the queries; the rows are queries ``first``, ``first + 1``, ...

    ``distances_QG`` is float32 or float64.

    Raises:
        ValueError: a distance that is NaN or infinite.
    """
    if impl == "auto":
        impl = "torch" if distances_QG.device.type != "cpu" else "cpp" if op.available() else "numpy"
    if impl == "cpp":
        return [_place_cpp(distances_QG, first, same_identity, top_k)]
    if impl == "numpy":
        return _place_numpy(distances_QG.numpy(), first, same_identity, top_k)
    block_QG = distances_QG.clone(memory_format=torch.contiguous_format)
    pairs = same_identity.pairs(first, first + len(block_QG))
    return [_place_block_torch(block_QG, first, pairs, same_identity.junk_G, top_k)]


def _place_cpp(distances_QG: Tensor, first: int, same_identity: SameIdentity, top_k: int) -> Places:
    pairs = same_identity.pairs(first, first + len(distances_QG))
    (query_P, gallery_P), (query_L, gallery_L) = pairs.matches, pairs.left_out
    matches = torch.from_numpy(query_P), torch.from_numpy(gallery_P)
    left_out = torch.from_numpy(query_L), torch.from_numpy(gallery_L)
    junk_G = torch.from_numpy(same_identity.junk_G)
    rank_P, index_QK, wrong_row = op.match_ranks(distances_QG, matches, left_out, junk_G, top_k)
    if wrong_row >= 0:
        _refuse_not_finite(distances_QG[wrong_row : wrong_row + 1].numpy(), first + wrong_row)
    distance_QK = distances_QG.gather(1, index_QK.clamp(min=0)).where(index_QK >= 0, torch.inf)
    return Places(query_P, rank_P.numpy(), index_QK.numpy(), distance_QK.numpy())


def _place_numpy(distances_QG: np.ndarray, first: int, same_identity: SameIdentity, top_k: int) -> list[Places]:
    rows = max(1, BLOCK_BYTES // max(1, distances_QG[:1].nbytes))
    work = partial(_place_rows, distances_QG, first, same_identity, top_k)
    starts = range(0, len(distances_QG), rows)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(lambda start: work(slice(start, start + rows)), starts))


def _place_rows(distances_QG: np.ndarray, first: int, same_identity: SameIdentity, top_k: int, rows: slice) -> Places:
    block_QG = distances_QG[rows].copy()
    pairs = same_identity.pairs(first + rows.start, first + rows.start + len(block_QG))
    return _place_block_numpy(block_QG, first + rows.start, pairs, same_identity.junk_G, top_k)


def _place_block_numpy(block_QG: np.ndarray, first: int, pairs: Pairs, junk_G: np.ndarray, top_k: int) -> Places:
    """``block_QG`` is overwritten where a ranking leaves entries out."""
    if not np.isfinite(block_QG).all():
        _refuse_not_finite(block_QG, first)
    block_QG[:, junk_G] = np.inf
    block_QG[pairs.left_out] = np.inf
    sorted_QG = np.sort(block_QG, axis=1)
    query_P, gallery_P = pairs.matches
    wanted_P = block_QG[query_P, gallery_P]
    start_Q = np.searchsorted(query_P, np.arange(len(block_QG) + 1))
    runs = zip(sorted_QG, start_Q[:-1], start_Q[1:], strict=True)
    rank_P = np.concatenate([row_G.searchsorted(wanted_P[start:end]) for row_G, start, end in runs])
    after_P = np.minimum(rank_P + 1, block_QG.shape[1] - 1)
    # If nothing follows the match, the entry after it is the match itself: that costs some time and changes nothing.
    for p in np.flatnonzero(sorted_QG[query_P, after_P] == wanted_P):
        rank_P[p] += np.count_nonzero(block_QG[query_P[p], : gallery_P[p]] == wanted_P[p])
    return Places(query_P, rank_P, *_nearest_numpy(block_QG, sorted_QG, top_k))


def _nearest_numpy(block_QG: np.ndarray, sorted_QG: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest entries of each row; of two equally near ones, the earlier comes first."""
    k = min(top_k, block_QG.shape[1])
    if k == 0:
        return np.zeros((len(block_QG), 0), dtype=np.int64), np.zeros((len(block_QG), 0), dtype=block_QG.dtype)
    row_N, column_N = (block_QG <= sorted_QG[:, k - 1 : k]).nonzero()
    order_N = np.lexsort((column_N, block_QG[row_N, column_N], row_N))
    place_QK = np.searchsorted(row_N, np.arange(len(block_QG)))[:, None] + np.arange(k)
    index_QK = column_N[order_N][place_QK]
    distance_QK = np.take_along_axis(block_QG, index_QK, 1)
    return np.where(distance_QK < np.inf, index_QK, -1), distance_QK


def _place_block_torch(block_QG: Tensor, first: int, pairs: Pairs, junk_G: np.ndarray, top_k: int) -> Places:
    """``block_QG`` is overwritten where a ranking leaves entries out."""
    device = block_QG.device
    if not block_QG.isfinite().all():
        _refuse_not_finite(block_QG.cpu().numpy(), first)
    block_QG.index_fill_(1, torch.as_tensor(junk_G, device=device), torch.inf)
    block_QG[tuple(torch.as_tensor(index, device=device) for index in pairs.left_out)] = torch.inf
    row_P, column_P = (torch.as_tensor(index, device=device) for index in pairs.matches)
    rank_P = row_P.new_zeros(len(row_P))
    if len(row_P):
        wanted_P = block_QG[row_P, column_P]
        sorted_QG = block_QG.sort(dim=1).values
        # searchsorted needs a rectangle: a row has the matches of one query, then padding
        count_Q = row_P.bincount(minlength=len(block_QG))
        slot_P = torch.arange(len(row_P), device=device) - (count_Q.cumsum(0) - count_Q)[row_P]
        wanted_QM = block_QG.new_zeros(len(block_QG), int(count_Q.max()))
        wanted_QM[row_P, slot_P] = wanted_P
        rank_P = torch.searchsorted(sorted_QG, wanted_QM)[row_P, slot_P]
        not_farther_P = torch.searchsorted(sorted_QG, wanted_QM, right=True)[row_P, slot_P]
        earlier_G = torch.arange(block_QG.shape[1], device=device)
        for some_T in (not_farther_P - rank_P > 1).nonzero()[:, 0].split(max(1, len(block_QG))):
            as_near_TG = block_QG[row_P[some_T]] == wanted_P[some_T, None]
            rank_P[some_T] += (as_near_TG & (earlier_G < column_P[some_T, None])).sum(1)
    index_QK, distance_QK = nearest(block_QG, top_k)
    return Places(pairs.matches[0], rank_P.cpu().numpy(), index_QK.cpu().numpy(), distance_QK.cpu().numpy())


def nearest(block_QG: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The nearest entries of each row; of two equally near ones, the earlier comes first."""
    k = min(top_k, block_QG.shape[1])
    if k == 0:
        return block_QG.new_zeros(len(block_QG), 0, dtype=torch.int64), block_QG.new_zeros(len(block_QG), 0)
    bound_Q1 = block_QG.topk(k, largest=False).values[:, -1:]  # topk may return any of several equally near
    row_N, column_N = (block_QG <= bound_Q1).nonzero(as_tuple=True)
    distance_N = block_QG[row_N, column_N]
    by_distance_N = distance_N.sort(stable=True).indices  # ties stay in gallery order, as from nonzero
    order_N = by_distance_N[row_N[by_distance_N].sort(stable=True).indices]
    count_Q = row_N.bincount(minlength=len(block_QG))
    place_QK = (count_Q.cumsum(0) - count_Q)[:, None] + torch.arange(k, device=block_QG.device)
    distance_QK = distance_N[order_N[place_QK]]
    return column_N[order_N[place_QK]].where(distance_QK < torch.inf, -1), distance_QK


def _refuse_not_finite(block_QG: np.ndarray, first: int) -> None:
    wrong_QG = ~np.isfinite(block_QG)
    row, column = np.argwhere(wrong_QG)[0].tolist()
    raise ValueError(
        f"the distance in row {first + row}, column {column} is {block_QG[row, column]} "
        f"(such values in this row: {int(wrong_QG[row].sum()):,}), but distances must be finite. "
        "Look for NaN in their features"
    )
