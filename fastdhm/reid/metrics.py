"""Mean average precision and the cumulative matching curve of a ranking, in the single-query protocol.

Legend: Q queries, G gallery, R ranks, P matches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdhm.errors import UserError, unknown
from fastdhm.reid._blocks import runs
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
    first_rank_Q: Tensor  # int64; rank of the nearest match, from 1; 0 for a query without a match
    num_without_match: int

    @property
    def num_queries(self) -> int:
        """The number of queries, including those without a match."""
        return len(self.ap_Q)

    @property
    def note(self) -> str | None:
        """A message for the user: how many queries were left out."""
        if not self.num_without_match:
            return None
        have = "has" if self.num_without_match == 1 else "have"
        return (
            f"{self.num_without_match:,} of {self.num_queries:,} queries {have} no match from another camera in the "
            "gallery: left out of mAP and CMC"
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
    other entries of its identity are its m matches, at ranks ``r_1 < ... < r_m`` counted from 1. All other entries,
    including distractors, are wrong answers::

        AP      = 1/m sum_k k / r_k                      mean precision at each match
        mAP     = mean of AP                             over the queries with m > 0
        CMC(r)  = share of those queries with r_1 <= r

    This is the AP of the usual Python evaluators and of ``sklearn.metrics.average_precision_score``. Market-1501's
    MATLAB code uses trapezoids instead: the mean of ``(k - 1) / (r_k - 1)`` and ``k / r_k`` for each match (at
    ``r_k = 1``, the former is 1). This is never higher, and half as much for a single match that is not the first.

    Equally far entries keep their order in the gallery, so equal input gives equal numbers.

    Args:
        distances_QG: finite. float64 and whole numbers are compared in float64, other types in float32.
        query_ids_Q: identities, whole numbers. All labels may be a tensor, an array or a list.
        max_rank: length of ``cmc_R``. It may exceed the gallery: the curve is constant from there on.
        chunk_mib: distances that are processed at a time; this takes a few times as much memory besides the matrix. It
            changes no bit of the result.
        impl: ``"cpp"`` and ``"numpy"`` (host memory, threads), ``"torch"`` (any device), or ``"auto"``. On the CPU,
            auto is ``"cpp"``, or ``"numpy"`` if the C++ extension was not built; on other devices ``"torch"``. All give
            the same bits.

    Raises:
        ValueError: shapes that do not fit, a distance that is NaN or infinite, a ``max_rank`` below 1, an ``impl`` that
            is not available here, or no query with a match.
    """
    labels = Labels.checked(query_ids_Q, gallery_ids_G, query_cams_Q, gallery_cams_G)
    return tally_of(tensor_of(distances_QG), labels, max_rank, chunk_mib=chunk_mib, impl=impl).metrics()


def tally_of(
    distances_QG: Tensor,
    labels: Labels,
    max_rank: int,
    *,
    top_k: int = 0,
    chunk_mib: float = CHUNK_MIB,
    impl: str = "auto",
) -> Tally:
    """The ranks of all matches, and the ``top_k`` nearest entries of each query, from a matrix of distances."""
    tally = Tally(labels.num_queries, max_rank, min(top_k, labels.num_gallery))
    _validate(distances_QG, labels, impl)
    same_identity = SameIdentity(labels)
    for first, last in runs(labels.num_queries, labels.num_gallery * 4, chunk_mib):
        for places in place(_floating(distances_QG[first:last]), first, same_identity, top_k=top_k, impl=impl):
            tally.add(places)
    return tally


class Tally:
    """Collects the ranks of matches and the K nearest entries of some queries, in order, and computes the metrics."""

    def __init__(self, num_queries: int, max_rank: int, K: int):
        if max_rank < 1:
            raise ValueError(f"max_rank is {max_rank}: must be 1 or more")
        self.max_rank = max_rank
        self.ap_Q = np.full(num_queries, np.nan)
        self.first_rank_Q = np.zeros(num_queries, dtype=np.int64)
        self._filled = 0
        self._index_QK = [np.empty((0, K), np.int64)]  # parts, queries in order
        self._distance_QK = [np.empty((0, K), np.float32)]

    def add(self, places: Places) -> None:
        """Add the queries that follow those added before."""
        self._index_QK.append(places.index_QK)
        self._distance_QK.append(places.distance_QK)
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

    def nearest(self) -> tuple[Tensor, Tensor]:
        """``index_QK`` and ``distance_QK`` of all queries, see :class:`Places`."""
        index_QK, distance_QK = np.concatenate(self._index_QK), np.concatenate(self._distance_QK)
        return torch.from_numpy(index_QK), torch.from_numpy(distance_QK)

    def join(self, join: Callable[[Tensor], Tensor]) -> None:
        """Become the tally of all queries: ``join`` gives the rows of all for the rows of these."""
        index_QK, distance_QK = self.nearest()
        self._index_QK, self._distance_QK = [join(index_QK).numpy()], [join(distance_QK).numpy()]
        self.ap_Q, self.first_rank_Q = (join(torch.from_numpy(rows)).numpy() for rows in (self.ap_Q, self.first_rank_Q))

    def metrics(self) -> RankingMetrics:
        matched_Q = self.first_rank_Q > 0
        if not matched_Q.any():
            raise UserError(
                f"none of {len(matched_Q):,} queries has an image of its identity from another camera in the gallery, "
                "so nothing can be ranked: check that identities and cameras belong to these images"
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


def _floating(distances_QG: Tensor) -> Tensor:
    if distances_QG.dtype in (torch.float32, torch.float64):
        return distances_QG
    return distances_QG.to(torch.float32 if distances_QG.is_floating_point() else torch.float64)


def _validate(distances_QG: Tensor, labels: Labels, impl: str) -> None:
    if impl not in IMPLS:
        raise unknown("impl", impl, IMPLS)
    if impl in ("cpp", "numpy") and distances_QG.device.type != "cpu":
        raise ValueError(f"impl is {impl!r}, but the distances are on {distances_QG.device}: use 'torch'")
    if distances_QG.is_complex():
        raise ValueError(f"distances_QG is {distances_QG.dtype}: must be real numbers")
    wanted = (labels.num_queries, labels.num_gallery)
    if distances_QG.shape == wanted:
        return
    transposed = distances_QG.shape == wanted[::-1]
    raise ValueError(
        f"distances_QG is {tuple(distances_QG.shape)}: must be {wanted}, a row for each query and a column for each "
        "gallery entry" + (". It would fit transposed: are query and gallery swapped?" if transposed else "")
    )
