"""k-reciprocal re-ranking (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017).

Equation numbers are that paper's. Legend: N = Q + G images, queries first; Q queries, G gallery, D features, K nearest
neighbours with the image itself, H of them for half of k1, P pairs of images, S images of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdhm.errors import UserError, unknown
from fastdhm.reid._blocks import ALONE, Blocks, Share, runs
from fastdhm.reid._distances import METRICS, Space
from fastdhm.reid._positions import nearest, tensor_of

CHUNK_MIB = 64


def rerank(
    query_QD: Tensor | np.ndarray,
    gallery_GD: Tensor | np.ndarray,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    metric: str = "euclidean",
    device: torch.device | str | None = None,
) -> Tensor:
    """Distances that also compare the neighbours of two images: ``(1 - lambda) d_J + lambda d`` (Eq. 12).

    Each image is encoded by its k-reciprocal neighbours ``R*(p, k1)`` (Eq. 3, 5) with weights ``exp(-d)`` (Eq. 7). The
    encoding is averaged over the ``k2`` nearest images (Eq. 11), and ``d_J`` is the Jaccard distance of two encodings
    (Eq. 10). Three details are as in the authors' code: ``d`` is the squared Euclidean distance divided by the largest
    in its row, over queries and gallery together; encodings are scaled to sum 1; an image is its own first neighbour.

    The encodings are sparse, and only ``CHUNK_MIB`` of the N x N distances are held at a time. At Market-1501's size,
    this takes about 0.4 GB besides a copy of the features; 266 MB of it are the result (Q x G float32). The full
    matrices would take 2 GB each. The exact amount depends on how many neighbours are reciprocal.

    Args:
        query_QD: features, finite.
        gallery_GD: likewise, with the same D.
        k1: neighbours of an image; all images if there are fewer. ``k2`` likewise.
        metric: ``"euclidean"``, or ``"cosine"``: the features are scaled to length 1 first.
        device: where distances are computed; default: the gallery's. The encodings are computed on the host.

    Returns:
        ``float32 [Q, G]`` on the CPU, for :func:`ranking_metrics`.

    Raises:
        ValueError: shapes that do not fit, NaN or infinite features, an unknown metric, ``k1`` or ``k2`` below 1, or
            ``lambda_value`` outside [0, 1].
    """
    query_QD, gallery_GD = (tensor_of(features) for features in (query_QD, gallery_GD))
    _, filled = reranked(query_QD, gallery_GD, k1, k2, lambda_value, metric=metric, device=device)
    result_QG = torch.empty(len(query_QD), len(gallery_GD))
    for first, block_SG in filled:
        result_QG[first : first + len(block_SG)] = block_SG
    return result_QG


def reranked(
    query_QD: Tensor,
    gallery_GD: Tensor,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    metric: str,
    device: torch.device | str | None,
    share: Share = ALONE,
) -> tuple[Blocks, Iterator[tuple[int, Tensor]]]:
    """The distances of :func:`rerank` in blocks of queries: which, and the first query and the rows of those of this
    ``share``. Each process finds the neighbours of its share of the images, and encodes all."""
    _validate(query_QD, gallery_GD, k1, k2, lambda_value, metric)
    device = torch.device(device or gallery_GD.device)
    space = Space.of(query_QD, gallery_GD, metric, device)
    feature_ND = torch.cat([features.to(device) for features in (query_QD, gallery_GD)])
    neighbour_NK, farthest_N = _neighbours(space, feature_ND, max(k1 + 1, k2), share)
    encoding = _encode(space, feature_ND, neighbour_NK[:, : k1 + 1], farthest_N).averaged(neighbour_NK[:, :k2])
    # An image shares entries with only a part of the gallery, but each shared entry needs memory for several numbers.
    blocks = runs(len(query_QD), 64 * len(gallery_GD), CHUNK_MIB)
    return blocks, _combine(space, feature_ND, farthest_N, encoding, len(query_QD), lambda_value, share.of(blocks))


@dataclass(frozen=True)
class _Encoding:
    """A sparse N x N matrix, sorted by row and column; row p holds the weights of the images that encode p."""

    row_P: np.ndarray
    column_P: np.ndarray
    weight_P: np.ndarray
    size: int

    @classmethod
    def summed(cls, key_P: np.ndarray, weight_P: np.ndarray, size: int) -> _Encoding:
        """Make it from keys ``row * size + column``; weights with the same key are added."""
        key_P, place_P = np.unique(key_P, return_inverse=True)
        return cls(key_P // size, key_P % size, np.bincount(place_P, weight_P, len(key_P)), size)

    def starts(self) -> np.ndarray:
        """The start of each row, and the end of the last."""
        return np.searchsorted(self.row_P, np.arange(self.size + 1))

    def averaged(self, neighbour_NK: np.ndarray) -> _Encoding:
        """Each row becomes the mean of the rows of its neighbours (Eq. 11)."""
        row_R = np.repeat(np.arange(self.size), neighbour_NK.shape[1])
        of_R, entry_R = _expand(self.starts(), neighbour_NK.reshape(-1))
        weight_R = self.weight_P[entry_R] / neighbour_NK.shape[1]
        return self.summed(row_R[of_R] * self.size + self.column_P[entry_R], weight_R, self.size)


def _neighbours(space: Space, feature_ND: Tensor, k: int, share: Share) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` nearest images of each, itself first, then by distance and index; and its largest squared distance."""
    N = len(feature_ND)
    blocks = runs(N, N * 4, CHUNK_MIB)
    neighbours, farthest = [torch.empty(0, min(k, N), dtype=torch.int64)], [torch.empty(0, dtype=torch.float64)]
    for first, last in share.of(blocks):
        distance_SN = feature_ND.new_empty(last - first, N, dtype=torch.float32)
        space.fill(distance_SN, feature_ND[first:last], feature_ND)
        farthest.append(space.squared(distance_SN.amax(1)).clamp(min=torch.finfo(torch.float32).tiny).cpu())
        own_S = torch.arange(last - first, device=feature_ND.device)
        distance_SN[own_S, first + own_S] = -torch.inf  # the image itself comes before equal ones
        neighbours.append(nearest(distance_SN, k)[0].cpu())
    neighbour_NK, farthest_N = (share.joined(torch.cat(parts), blocks) for parts in (neighbours, farthest))
    return neighbour_NK.numpy(), farthest_N.numpy()


def _encode(space: Space, feature_ND: Tensor, neighbour_NK: np.ndarray, farthest_N: np.ndarray) -> _Encoding:
    """Weights over the expanded k-reciprocal neighbours (Eq. 3, 5, 7), each row scaled to sum 1."""
    N, K = neighbour_NK.shape
    reciprocal_NK = _reciprocal(neighbour_NK)
    half_NH = neighbour_NK[:, : round((K - 1) / 2) + 1]
    half_NH = np.where(_reciprocal(half_NH), half_NH, -1)
    H = half_NH.shape[1]
    keys = [(np.arange(N)[:, None] * N + neighbour_NK)[reciprocal_NK]]
    for first, last in runs(N, K * H * K, CHUNK_MIB):
        own_SK = np.where(reciprocal_NK[first:last], neighbour_NK[first:last], -2)
        candidate_SKH = half_NH[neighbour_NK[first:last]]
        exists_SKH = candidate_SKH >= 0
        shared_SKH = (candidate_SKH[..., None] == own_SK[:, None, None, :]).any(-1)
        enough_SK = 3 * shared_SKH.sum(-1) > 2 * exists_SKH.sum(-1)  # Eq. 5; strictly, as the authors' code has it
        taken_SKH = exists_SKH & (enough_SK & reciprocal_NK[first:last])[..., None]
        keys.append((np.arange(first, last)[:, None, None] * N + candidate_SKH)[taken_SKH])
    key_P = np.unique(np.concatenate(keys))
    row_P, column_P = key_P // N, key_P % N
    weight_P = np.exp(-_pair_distances(space, feature_ND, row_P, column_P) / farthest_N[row_P])
    return _Encoding(row_P, column_P, weight_P / np.bincount(row_P, weight_P, N)[row_P], N)


def _reciprocal(neighbour_NK: np.ndarray) -> np.ndarray:
    """Whether an image is among its neighbour's neighbours too, for each neighbour (Eq. 3): ``bool [N, K]``."""
    N, K = neighbour_NK.shape
    parts = [
        (neighbour_NK[neighbour_NK[first:last]] == np.arange(first, last)[:, None, None]).any(-1)
        for first, last in runs(N, 8 * K * K, CHUNK_MIB)
    ]
    return np.concatenate(parts)


def _pair_distances(space: Space, feature_ND: Tensor, row_P: np.ndarray, column_P: np.ndarray) -> np.ndarray:
    """Squared distances of the pairs of images ``row_P`` and ``column_P``."""
    parts = []
    for first, last in runs(len(row_P), 16 * feature_ND.shape[1], CHUNK_MIB):
        row_S, column_S = (torch.as_tensor(index[first:last], device=feature_ND.device) for index in (row_P, column_P))
        parts.append(space.squared(space.pairs(feature_ND[row_S], feature_ND[column_S])).cpu().numpy())
    return np.concatenate(parts)


def _expand(start_N: np.ndarray, row_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All entries of the rows ``row_R``: the index into ``row_R`` of each entry, and its place in the matrix."""
    count_R = start_N[row_R + 1] - start_N[row_R]
    of_E = np.repeat(np.arange(len(row_R)), count_R)
    return of_E, np.arange(len(of_E)) - (np.cumsum(count_R) - count_R - start_N[row_R])[of_E]


def _combine(
    space: Space,
    feature_ND: Tensor,
    farthest_N: np.ndarray,
    encoding: _Encoding,
    Q: int,
    lambda_value: float,
    blocks: Blocks,
) -> Iterator[tuple[int, Tensor]]:
    """``(1 - lambda) d_J + lambda d`` (Eq. 10, 12); only entries in both encodings add to the sum of minima."""
    G = encoding.size - Q
    start_N = encoding.starts()
    by_column_P = np.lexsort((encoding.row_P, encoding.column_P))
    by_column_P = by_column_P[encoding.row_P[by_column_P] >= Q]  # the gallery images that each image encodes
    column_start_N = np.searchsorted(encoding.column_P[by_column_P], np.arange(encoding.size + 1))
    for first, last in blocks:
        own_E = np.arange(start_N[first], start_N[last])
        of_E, place_E = _expand(column_start_N, encoding.column_P[own_E])
        other_E = by_column_P[place_E]
        shared_E = np.minimum(encoding.weight_P[own_E[of_E]], encoding.weight_P[other_E])
        pair_E = (encoding.row_P[own_E[of_E]] - first) * G + encoding.row_P[other_E] - Q
        overlap_SG = np.bincount(pair_E, shared_E, (last - first) * G).reshape(-1, G)
        distance_SG = feature_ND.new_empty(last - first, G, dtype=torch.float32)
        space.fill(distance_SG, feature_ND[first:last], feature_ND[Q:])
        distance_SG = space.squared(distance_SG).cpu() / torch.from_numpy(farthest_N[first:last, None])
        jaccard_SG = torch.from_numpy(1 - overlap_SG / (2 - overlap_SG))  # each encoding sums to 1
        yield first, ((1 - lambda_value) * jaccard_SG + lambda_value * distance_SG).float()


def _validate(query_QD: Tensor, gallery_GD: Tensor, k1: int, k2: int, lambda_value: float, metric: str) -> None:
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    shapes = tuple(query_QD.shape), tuple(gallery_GD.shape)
    if query_QD.ndim != 2 or gallery_GD.ndim != 2 or shapes[0][1] != shapes[1][1] or not all(shapes[0] + shapes[1]):
        raise ValueError(f"query_QD is {shapes[0]}, gallery_GD {shapes[1]}: must be [Q, D] and [G, D], none of them 0")
    for name, k in (("k1", k1), ("k2", k2)):
        if k < 1:
            raise UserError(f"{name} is {k}: must be 1 or more")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value is {lambda_value}: must be in [0, 1]")
