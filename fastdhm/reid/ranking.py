"""Rank a gallery of any size by features: exact, in bounded memory, without the matrix of all distances.

Legend: Q queries, G gallery, D features, K entries kept; S and T queries and gallery entries of one tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdhm.errors import unknown
from fastdhm.reid._positions import Places, place, tensor_of
from fastdhm.reid._protocol import Labels, SameIdentity
from fastdhm.reid.metrics import RankingMetrics, Tally, places_in, runs

METRICS = ("euclidean", "cosine")
# Rows and columns of one matrix product. How a product rounds may depend on its shape: the tiles are the same however
# much memory there is, and so are the distances.
TILES = {"cpu": (128, 8192), "cuda": (512, 65536)}


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

    ``euclidean`` is ``|q - g|``; it is ranked by ``|g|^2 - 2 q.g``, which orders the same. ``cosine`` is ``1 - q.g /
    (|q| |g|)``, and 1 for a feature of zeros. Both in float32 (keep TF32 off on a GPU): entries whose distances differ
    by less than rounding may come in either order, the same at every call.

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
    tile_S, tile_T = TILES["cpu" if device.type == "cpu" else "cuda"]
    square_Q, square_G = (
        _squared_norms(name, features, device, tile_T)
        for name, features in (("query_QD", query_QD), ("gallery_GD", gallery_GD))
    )
    same_identity = SameIdentity(labels)
    tally = Tally(labels.num_queries, max_rank)
    heads: list[Places] = []
    blocks = runs(labels.num_queries, labels.num_gallery * 4, memory_mib, multiple=tile_S)
    buffer_QG = torch.empty(blocks[0][1], labels.num_gallery, device=device)
    for first, last in blocks:
        block_QG = buffer_QG[: last - first]
        _fill(block_QG, query_QD[first:last], gallery_GD, square_G, metric, tile_S, tile_T)
        for places in place(block_QG, first, same_identity, top_k):
            tally.add(places)
            heads.append(places)
    index_QK, score_QK = _joined(heads)
    return Ranking(tally.metrics(), index_QK, _distance(score_QK, square_Q.cpu(), metric))


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
    return tuple(
        torch.from_numpy(np.concatenate(parts))
        for parts in ([places.index_QK for places in heads], [places.distance_QK for places in heads])
    )


def _fill(block_QG: Tensor, query_QD: Tensor, gallery_GD: Tensor, square_G: Tensor, metric: str, tile_S: int, tile_T):
    """Scores that order like the distances: ``|g|^2 - 2 q.g``, or minus the cosine."""
    for column, gallery_TD in zip(range(0, len(gallery_GD), tile_T), gallery_GD.split(tile_T), strict=True):
        gallery_TD = gallery_TD.to(block_QG.device, torch.float32)
        square_T = square_G[column : column + tile_T]
        for row, query_SD in zip(range(0, len(query_QD), tile_S), query_QD.split(tile_S), strict=True):
            query_SD = query_SD.to(block_QG.device, torch.float32)
            score_ST = block_QG[row : row + tile_S, column : column + tile_T]
            if metric == "euclidean":
                torch.addmm(square_T, query_SD, gallery_TD.T, alpha=-2, out=score_ST)
            else:
                torch.mm(F.normalize(query_SD), gallery_TD.T, out=score_ST)
                score_ST.mul_(-square_T.clamp(min=torch.finfo(torch.float32).tiny).rsqrt())


def _distance(score_QK: Tensor, square_Q: Tensor, metric: str) -> Tensor:
    if metric == "cosine":
        return 1 + score_QK
    return (score_QK + square_Q[:, None]).clamp(min=0).sqrt()


def _squared_norms(name: str, features_ND: Tensor, device: torch.device, tile: int) -> Tensor:
    squares = [part.to(device, torch.float32).square().sum(1) for part in features_ND.split(tile)]
    square_N = torch.cat(squares)
    wrong_N = ~square_N.isfinite()
    if wrong_N.any():
        rows = wrong_N.nonzero()[:, 0].tolist()
        raise ValueError(
            f"{name}: row {rows[0]} has a value that is NaN, infinite or too large to be squared ({len(rows):,} such "
            "rows in all). Look for a network that diverged, or for an image it cannot take"
        )
    return square_N


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
