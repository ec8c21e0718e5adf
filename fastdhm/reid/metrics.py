"""Mean average precision and the cumulative matching curve of a ranking, in the single-query protocol.

Legend: Q queries, G gallery, R ranks, P matches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdhm.errors import UserError, unknown
from fastdhm.reid._positions import Places, place, tensor_of
from fastdhm.reid._protocol import Labels, SameIdentity

CHUNK_MIB = 64
IMPLS = ("auto", "cpp", "numpy", "torch")


@dataclass(frozen=True)
class RankingMetrics:
    """How well a gallery was ranked. All on the CPU; fractions, not percent."""

    mean_ap: float  # over the queries that have a match
    cmc_R: Tensor  # float64; cmc_R[r]: share of those queries with a match among the r + 1 nearest
    ap_Q: Tensor  # float64; NaN for a query without a match
    first_rank_Q: Tensor  # int64; where the nearest match stands, 1 for the top; 0 for a query without a match
    num_without_match: int

    @property
    def num_queries(self) -> int:
        """All queries, with those that have no match."""
        return len(self.ap_Q)

    @property
    def note(self) -> str | None:
        """What the user should hear: how many queries were left out."""
        if not self.num_without_match:
            return None
        return (
            f"{self.num_without_match:,} of {self.num_queries:,} queries have no image of their identity from another "
            "camera in the gallery: left out of mAP and CMC"
        )


def ranking_metrics(
    distances_QG: Tensor | np.ndarray,
    query_ids_Q: Tensor | np.ndarray,
    gallery_ids_G: Tensor | np.ndarray,
    query_cams_Q: Tensor | np.ndarray,
    gallery_cams_G: Tensor | np.ndarray,
    max_rank: int = 50,
    *,
    chunk_mib: float = CHUNK_MIB,
    impl: str = "auto",
) -> RankingMetrics:
    """Average precision and CMC from a matrix of distances, smaller is nearer.

    Each query ranks the gallery without junk (identity -1) and without the entries of its own identity and camera. The
    rest of its identity are its m matches, at ranks ``r_1 < ... < r_m`` counted from 1; everything else, distractors
    among them, is a wrong answer::

        AP      = 1/m sum_k k / r_k                      mean precision at each match
        mAP     = mean of AP                             over the queries with m > 0
        CMC(r)  = share of those queries with r_1 <= r

    This is the AP of the usual Python evaluators and of ``sklearn.metrics.average_precision_score``. Market-1501's
    MATLAB code takes trapezoids instead, the mean of ``(k - 1) / (r_k - 1)`` and ``k / r_k`` for each match (1 for the
    former at ``r_k = 1``), which is never higher: half as much for a single match that is not the first.

    Two entries that are equally far keep the order they have in the gallery, so that equal input gives equal numbers.

    Args:
        distances_QG: finite; compared in float64 if that is what it is, or whole numbers, else in float32.
        query_ids_Q: identities, whole numbers; as the other labels a tensor, an array or a list.
        max_rank: length of ``cmc_R``. It may exceed the gallery: the curve stays where it is.
        chunk_mib: of distances at a time; a few times that is used besides the matrix. Changes no bit of the result.
        impl: ``"cpp"`` and ``"numpy"`` (host memory, threads), ``"torch"`` (any device), or ``"auto"``: for a CPU
            tensor or an array the first, or the second where the C++ extension was not built; the third for a tensor on
            another device. All give the same bits.

    Raises:
        ValueError: shapes that do not fit, a distance that is NaN or infinite, a ``max_rank`` below 1, an ``impl`` that
            is not available here, or not one query with a match.
    """
    labels = Labels.checked(query_ids_Q, gallery_ids_G, query_cams_Q, gallery_cams_G)
    tally = Tally(labels.num_queries, max_rank)
    for places in places_in(tensor_of(distances_QG), labels, top_k=0, chunk_mib=chunk_mib, impl=impl):
        tally.add(places)
    return tally.metrics()


def places_in(
    distances_QG: Tensor, labels: Labels, *, top_k: int, chunk_mib: float = CHUNK_MIB, impl: str = "auto"
) -> Iterator[Places]:
    """Where the matches of each query stand, and its ``top_k`` nearest; a chunk after the other, queries in order."""
    _validate(distances_QG, labels, impl)
    same_identity = SameIdentity(labels)
    for first, last in runs(labels.num_queries, labels.num_gallery * 4, chunk_mib):
        yield from place(_floating(distances_QG[first:last]), first, same_identity, top_k=top_k, impl=impl)


class Tally:
    """Collects the ranks of matches, queries in order, and makes the metrics of them."""

    def __init__(self, num_queries: int, max_rank: int):
        if max_rank < 1:
            raise ValueError(f"max_rank is {max_rank}: needs 1 or more")
        self.max_rank = max_rank
        self.ap_Q = np.full(num_queries, np.nan)
        self.first_rank_Q = np.zeros(num_queries, dtype=np.int64)
        self._filled = 0

    def add(self, places: Places) -> None:
        """The places of the queries that follow those added before."""
        query_P = places.query_P
        order_P = np.lexsort((places.rank_P, query_P))
        rank_P = places.rank_P[order_P] + 1
        count_Q = np.bincount(query_P, minlength=len(places.index_QK))
        start_Q = np.cumsum(count_Q) - count_Q
        hits_P = np.arange(1, len(query_P) + 1) - start_Q[query_P]
        has_Q = count_Q > 0
        if has_Q.any():
            matched = self._filled + np.flatnonzero(has_Q)
            self.ap_Q[matched] = np.add.reduceat(hits_P / rank_P, start_Q[has_Q]) / count_Q[has_Q]
            self.first_rank_Q[matched] = rank_P[start_Q[has_Q]]
        self._filled += len(count_Q)

    def metrics(self) -> RankingMetrics:
        matched_Q = self.first_rank_Q > 0
        if not matched_Q.any():
            raise UserError(
                f"not one of {len(matched_Q):,} queries has an image of its identity from another camera in the "
                "gallery, so nothing can be ranked: look whether identities and cameras belong to these images"
            )
        first_N = self.first_rank_Q[matched_Q]
        at_rank_R = np.bincount(np.minimum(first_N, self.max_rank + 1), minlength=self.max_rank + 2)[1:-1]
        return RankingMetrics(
            mean_ap=float(self.ap_Q[matched_Q].mean()),
            cmc_R=torch.from_numpy(np.cumsum(at_rank_R) / len(first_N)),
            ap_Q=torch.from_numpy(self.ap_Q),
            first_rank_Q=torch.from_numpy(self.first_rank_Q),
            num_without_match=int((~matched_Q).sum()),
        )


def runs(num_queries: int, row_bytes: int, chunk_mib: float, multiple: int = 1) -> list[tuple[int, int]]:
    """(first, last) of runs of queries whose rows fit into ``chunk_mib``: a multiple of ``multiple``, one at least."""
    if chunk_mib <= 0:
        raise ValueError(f"chunk_mib is {chunk_mib}: needs more than 0")
    rows = max(1, int(chunk_mib * 2**20 / row_bytes) // multiple) * multiple
    return [(first, min(first + rows, num_queries)) for first in range(0, num_queries, rows)]


def _floating(distances_QG: Tensor) -> Tensor:
    if distances_QG.dtype in (torch.float32, torch.float64):
        return distances_QG
    return distances_QG.to(torch.float32 if distances_QG.is_floating_point() else torch.float64)


def _validate(distances_QG: Tensor, labels: Labels, impl: str) -> None:
    if impl not in IMPLS:
        raise unknown("impl", impl, IMPLS)
    if impl in ("cpp", "numpy") and distances_QG.device.type != "cpu":
        raise ValueError(f"impl {impl!r} needs distances in host memory, not on {distances_QG.device}: use 'torch'")
    if distances_QG.is_complex():
        raise ValueError(f"distances_QG is {distances_QG.dtype}: needs real numbers")
    wanted = (labels.num_queries, labels.num_gallery)
    if distances_QG.shape == wanted:
        return
    transposed = distances_QG.shape == wanted[::-1]
    raise ValueError(
        f"distances_QG is {tuple(distances_QG.shape)}: needs {wanted}, a row for each of the {wanted[0]} queries and a "
        f"column for each of the {wanted[1]} gallery entries"
        + (". It would fit transposed: are query and gallery swapped?" if transposed else "")
    )
