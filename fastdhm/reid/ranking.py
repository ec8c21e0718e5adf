"""Rank a gallery of any size by features: exact, in bounded memory, without the full matrix of distances.

Legend: Q queries, G gallery, D features, K entries kept; S and T queries and gallery entries of one tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastdhm.errors import unknown
from fastdhm.reid._blocks import ALONE, Blocks, Share, blocks_of, runs
from fastdhm.reid._distances import METRICS, TILES, Space
from fastdhm.reid._positions import place, tensor_of
from fastdhm.reid._protocol import Labels, SameIdentity
from fastdhm.reid.metrics import RankingMetrics, Tally, tally_of
from fastdhm.reid.rerank import reranked


@dataclass(frozen=True)
class Ranking:
    """Metrics, and the nearest entries of every query. All on the CPU."""

    metrics: RankingMetrics
    index_QK: Tensor  # int64, gallery indices, nearest first; -1 where a query has fewer valid entries
    distance_QK: Tensor  # float32; infinite there


def rank(
    query_QD: Tensor | np.ndarray,
    gallery_GD: Tensor | np.ndarray,
    query_ids_Q: Tensor | np.ndarray,
    gallery_ids_G: Tensor | np.ndarray,
    query_cams_Q: Tensor | np.ndarray,
    gallery_cams_G: Tensor | np.ndarray,
    metric: str = "euclidean",
    *,
    max_rank: int = 50,
    top_k: int = 10,
    memory_mib: float = 512,
    device: torch.device | str | None = None,
    share: Share = ALONE,
) -> Ranking:
    """The metrics of :func:`ranking_metrics` and each query's ``top_k`` nearest entries, from features.

    ``euclidean`` is ``|q - g|``. ``cosine`` is ``1 - q.g / (|q| |g|)``, and 1 for a feature of zeros. Both are computed
    in float64 and compared in float32, so features may have any size and any distance from 0. Entries that are equally
    far in float32 keep their order in the gallery.

    Args:
        query_QD: floating point, finite; on any device.
        gallery_GD: likewise, with the same D. It is read tile by tile, so it may be a memory map.
        query_ids_Q: identities, whole numbers. All labels may be a tensor, an array or a list.
        memory_mib: distances that are held at once. The ranking takes as much again on a CPU, and five times as much on
            a GPU. At least 128 rows (512 on a GPU) are held: 512 MB for a gallery of a million. It changes no bit of
            the result.
        device: where to compute; default: the gallery's.
        share: which of the queries to rank here, and how to get the results of the others; all have the same input.

    Raises:
        ValueError: shapes that do not fit, an unknown metric, a feature that is NaN or infinite, or no query with a
            match.
    """
    labels = Labels.checked(query_ids_Q, gallery_ids_G, query_cams_Q, gallery_cams_G)
    query_QD, gallery_GD = _validated(query_QD, gallery_GD, labels, metric, top_k)
    device = torch.device(device or gallery_GD.device)
    space = Space.of(query_QD, gallery_GD, metric, device)
    tile_S, _ = TILES["cpu" if device.type == "cpu" else "cuda"]
    blocks = runs(labels.num_queries, labels.num_gallery * 4, memory_mib, multiple=tile_S)
    if share.count > 1:  # whole tiles for each: a product of another shape may round otherwise
        evenly = -(-labels.num_queries // (share.count * tile_S)) * tile_S
        blocks = blocks_of(labels.num_queries, min(blocks[0][1], evenly))
    buffer_QG = torch.empty(blocks[0][1], labels.num_gallery, device=device)

    def filled() -> Iterator[tuple[int, Tensor]]:
        for first, last in share.of(blocks):
            block_QG = buffer_QG[: last - first]
            space.fill(block_QG, query_QD[first:last], gallery_GD)
            yield first, block_QG

    ranking = _rank_blocks(filled(), blocks, labels, share, max_rank, top_k)
    return replace(ranking, distance_QK=(ranking.distance_QK.double() * space.unit).float())


def _rank_blocks(
    filled: Iterable[tuple[int, Tensor]], blocks: Blocks, labels: Labels, share: Share, max_rank: int, top_k: int
) -> Ranking:
    """From the distances of the blocks of this ``share``: the first query of each, and its rows."""
    own = sum(last - first for first, last in share.of(blocks))
    tally, same_identity = Tally(own, max_rank, min(top_k, labels.num_gallery)), SameIdentity(labels)
    for first, block_QG in filled:
        for places in place(block_QG, first, same_identity, top_k):
            tally.add(places)
    tally.join(lambda own_Q: share.joined(own_Q, blocks))
    return Ranking(tally.metrics(), *tally.nearest())


def rank_again(
    query_QD: Tensor | np.ndarray,
    gallery_GD: Tensor | np.ndarray,
    query_ids_Q: Tensor | np.ndarray,
    gallery_ids_G: Tensor | np.ndarray,
    query_cams_Q: Tensor | np.ndarray,
    gallery_cams_G: Tensor | np.ndarray,
    metric: str = "euclidean",
    *,
    max_rank: int = 50,
    top_k: int = 10,
    device: torch.device | str | None = None,
    share: Share = ALONE,
) -> Ranking:
    """As :func:`rank_distances` of the distances of :func:`rerank`, of which only some are held at a time.

    Arguments and errors are those of :func:`rank`.
    """
    labels = Labels.checked(query_ids_Q, gallery_ids_G, query_cams_Q, gallery_cams_G)
    query_QD, gallery_GD = _validated(query_QD, gallery_GD, labels, metric, top_k)
    blocks, filled = reranked(query_QD, gallery_GD, metric=metric, device=device, share=share)
    return _rank_blocks(filled, blocks, labels, share, max_rank, top_k)


def rank_distances(
    distances_QG: Tensor | np.ndarray,
    query_ids_Q: Tensor | np.ndarray,
    gallery_ids_G: Tensor | np.ndarray,
    query_cams_Q: Tensor | np.ndarray,
    gallery_cams_G: Tensor | np.ndarray,
    *,
    max_rank: int = 50,
    top_k: int = 10,
) -> Ranking:
    """The metrics of :func:`ranking_metrics` and each query's ``top_k`` nearest entries, from distances.

    Use it for distances that do not come from features directly, such as those of :func:`rerank`. Arguments and errors
    are those of :func:`ranking_metrics`.
    """
    labels = Labels.checked(query_ids_Q, gallery_ids_G, query_cams_Q, gallery_cams_G)
    tally = tally_of(tensor_of(distances_QG), labels, max_rank, top_k=top_k)
    return Ranking(tally.metrics(), *tally.nearest())


def _validated(
    query_QD: Tensor | np.ndarray, gallery_GD: Tensor | np.ndarray, labels: Labels, metric: str, top_k: int
) -> tuple[Tensor, Tensor]:
    """Both features as tensors, once they fit the labels and each other."""
    query_QD, gallery_GD = (tensor_of(features) for features in (query_QD, gallery_GD))
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}: must be 0 or more")
    sides = (("query_QD", query_QD, labels.num_queries), ("gallery_GD", gallery_GD, labels.num_gallery))
    for name, features_ND, count in sides:
        if features_ND.ndim != 2 or len(features_ND) != count or not features_ND.is_floating_point():
            raise ValueError(
                f"{name} is {features_ND.dtype} {tuple(features_ND.shape)}: must be floating point "
                f"[{count}, features], a row for each identity"
            )
    if query_QD.shape[1] != gallery_GD.shape[1]:
        raise ValueError(
            f"query_QD has {query_QD.shape[1]} features, but gallery_GD has {gallery_GD.shape[1]}: must be the same "
            "number. Are both from the same network?"
        )
    return query_QD, gallery_GD
