"""Rank a gallery of any size by features: exact, in bounded memory, without the matrix of all distances.

Legend: Q queries, G gallery, D features, K entries kept; S and T queries and gallery entries of one tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdhm.errors import unknown
from fastdhm.reid._distances import METRICS, TILES, Space
from fastdhm.reid._positions import Places, place, tensor_of
from fastdhm.reid._protocol import Labels, SameIdentity
from fastdhm.reid.metrics import RankingMetrics, Tally, places_in, runs


@dataclass(frozen=True)
class Ranking:
    """Metrics, and the head of every query's ranking. All on the CPU."""

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
) -> Ranking:
    """Metrics as of :func:`ranking_metrics` and each query's ``top_k``, from the features themselves.

    ``euclidean`` is ``|q - g|``, ``cosine`` ``1 - q.g / (|q| |g|)``, and 1 for a feature of zeros. Both are computed in
    float64 and compared in float32, so that it does not matter how far from 0 the features lie, nor how large they are.
    Entries that are equally far in float32 keep the order they have in the gallery.

    Args:
        query_QD: floating point, finite; may lie on another device than where it is ranked.
        gallery_GD: likewise, as wide. Is read tile by tile, so that it may be a memory map.
        query_ids_Q: identities, whole numbers; as the other labels a tensor, an array or a list.
        memory_mib: of distances held at once; besides them the ranking takes as much again on a CPU and five times that
            on a GPU. At least 128 rows (512 on a GPU) are held: 512 MB for a gallery of a million. Changes no bit.
        device: where to compute; default: the gallery's.

    Raises:
        ValueError: shapes that do not fit, an unknown metric, a feature that is NaN or infinite, or not one query with
            a match.
    """
    labels = Labels.checked(query_ids_Q, gallery_ids_G, query_cams_Q, gallery_cams_G)
    query_QD, gallery_GD = (tensor_of(features) for features in (query_QD, gallery_GD))
    _validate(query_QD, gallery_GD, labels, metric, top_k)
    device = torch.device(device or gallery_GD.device)
    space = Space.of(query_QD, gallery_GD, metric, device)
    tile_S, _ = TILES["cpu" if device.type == "cpu" else "cuda"]
    same_identity = SameIdentity(labels)
    tally = Tally(labels.num_queries, max_rank)
    heads: list[Places] = []
    blocks = runs(labels.num_queries, labels.num_gallery * 4, memory_mib, multiple=tile_S)
    buffer_QG = torch.empty(blocks[0][1], labels.num_gallery, device=device)
    for first, last in blocks:
        block_QG = buffer_QG[: last - first]
        space.fill(block_QG, query_QD[first:last], gallery_GD)
        for places in place(block_QG, first, same_identity, top_k):
            tally.add(places)
            heads.append(places)
    index_QK, distance_QK = _joined(heads)
    return Ranking(tally.metrics(), index_QK, (distance_QK.double() * space.unit).float())


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
    """What :func:`ranking_metrics` gives, and each query's ``top_k``: for distances that are no features', as of
    :func:`rerank`. Arguments and errors are those of :func:`ranking_metrics`."""
    labels = Labels.checked(query_ids_Q, gallery_ids_G, query_cams_Q, gallery_cams_G)
    tally = Tally(labels.num_queries, max_rank)
    heads = list(places_in(tensor_of(distances_QG), labels, top_k=top_k))
    for places in heads:
        tally.add(places)
    return Ranking(tally.metrics(), *_joined(heads))


def _joined(heads: list[Places]) -> tuple[Tensor, Tensor]:
    """``index_QK`` and ``distance_QK`` of all queries."""
    index_QK = np.concatenate([places.index_QK for places in heads])
    distance_QK = np.concatenate([places.distance_QK for places in heads])
    return torch.from_numpy(index_QK), torch.from_numpy(distance_QK)


def _validate(query_QD: Tensor, gallery_GD: Tensor, labels: Labels, metric: str, top_k: int) -> None:
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}: needs 0 or more")
    sides = (("query_QD", query_QD, labels.num_queries), ("gallery_GD", gallery_GD, labels.num_gallery))
    for name, features_ND, count in sides:
        if features_ND.ndim != 2 or len(features_ND) != count or not features_ND.is_floating_point():
            raise ValueError(
                f"{name} is {features_ND.dtype} {tuple(features_ND.shape)}: needs floating point [{count}, features], "
                "a row for each identity given"
            )
    if query_QD.shape[1] != gallery_GD.shape[1]:
        raise ValueError(
            f"query_QD has {query_QD.shape[1]} features, gallery_GD {gallery_GD.shape[1]}: needs as many. "
            "Do both come from the same network?"
        )
