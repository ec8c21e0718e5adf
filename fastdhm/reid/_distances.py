"""Distances of features, exact for features of any size and any distance from 0.

``|q - g|^2 = |q|^2 + |g|^2 - 2 q.g`` turns them into a matrix product. But it cancels if features are far from 0 or
close to each other: float32 keeps no correct digit for features near 3000, or for cosines near 1. So the median of some
features is subtracted, a power of two scales the features to about 1, and the products are in float64.

Legend: Q queries, G gallery, D features, N images; S and T of them in one tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

METRICS = ("euclidean", "cosine")
TILES = {"cpu": (128, 2048), "cuda": (512, 16384)}  # rows and columns of one product, to bound its float64 memory
MIDDLE_ROWS = 99  # the middle is the median of so many rows: a few outliers do not move it


@dataclass(frozen=True)
class Space:
    """The space of a distance: ``euclidean`` ``|q - g|``, or ``cosine`` ``1 - q.g / (|q| |g|)``."""

    metric: str
    device: torch.device
    middle_D: Tensor  # float64
    unit: float  # of euclidean distances: a power of two

    @classmethod
    def of(cls, query_QD: Tensor, gallery_GD: Tensor, metric: str, device: torch.device) -> Space:
        """The space of these features.

        Raises:
            ValueError: a feature that is NaN or infinite.
        """
        largest = max(_largest("query_QD", query_QD, device), _largest("gallery_GD", gallery_GD, device))
        unit = 2.0 ** min(max(math.frexp(largest)[1], -1000), 1000) if metric == "euclidean" else 1.0
        some = torch.linspace(0, len(gallery_GD) - 1, min(MIDDLE_ROWS, len(gallery_GD))).round().long()
        middle_D = gallery_GD[some.to(gallery_GD.device)].to(device, torch.float64).median(0).values
        return cls(metric, device, middle_D / unit, unit)

    def rows(self, features_ND: Tensor) -> Tensor:
        """Features prepared for comparison, ``float64 [N, D]``: of length 1 for cosines; a row of zeros stays 0."""
        rows_ND = features_ND.to(self.device, torch.float64) / self.unit
        if self.metric == "euclidean":
            return rows_ND.sub_(self.middle_D)
        largest_N1 = rows_ND.abs().amax(1, keepdim=True)
        rows_ND /= largest_N1.masked_fill_(largest_N1 == 0, 1)  # or squares would overflow or underflow
        return rows_ND.div_(rows_ND.norm(dim=1, keepdim=True).clamp(min=1))

    def fill(self, distance_QG: Tensor, query_QD: Tensor, gallery_GD: Tensor) -> None:
        """Write the distances, float32. Neither they nor the tiles depend on the number of queries."""
        tile_S, tile_T = TILES["cpu" if self.device.type == "cpu" else "cuda"]
        for column in range(0, len(gallery_GD), tile_T):
            gallery_TD = self.rows(gallery_GD[column : column + tile_T])
            square_T = gallery_TD.square().sum(1)
            for row in range(0, len(query_QD), tile_S):
                query_SD = self.rows(query_QD[row : row + tile_S])
                tile_ST = distance_QG[row : row + tile_S, column : column + tile_T]
                tile_ST.copy_(self._distances(query_SD, gallery_TD, square_T))

    def squared(self, distance: Tensor) -> Tensor:
        """Squared Euclidean distance, float64; for cosines, half of that between the features of length 1."""
        return distance.double().square() if self.metric == "euclidean" else distance.double()

    def pairs(self, one_SD: Tensor, other_SD: Tensor) -> Tensor:
        """The distance between each row of ``one_SD`` and the same row of ``other_SD``, float64."""
        one_SD, other_SD = self.rows(one_SD), self.rows(other_SD)
        if self.metric == "cosine":
            return (1 - (one_SD * other_SD).sum(1)).clamp(min=0)
        return (one_SD - other_SD).square().sum(1).sqrt()

    def _distances(self, query_SD: Tensor, gallery_TD: Tensor, square_T: Tensor) -> Tensor:
        euclidean = self.metric == "euclidean"
        whole_ST = query_SD.square().sum(1, keepdim=True) + square_T if euclidean else square_T.new_ones(())
        distance_ST = torch.addmm(whole_ST, query_SD, gallery_TD.T, alpha=-2 if euclidean else -1)
        # Equal rows differ only by rounding: set their distance to 0, so that they tie.
        rounding = 4 * torch.finfo(torch.float64).eps * math.sqrt(query_SD.shape[1])
        distance_ST.masked_fill_(distance_ST <= rounding * whole_ST, 0)
        return distance_ST.sqrt_() if euclidean else distance_ST


def _largest(name: str, features_ND: Tensor, device: torch.device) -> float:
    """The largest absolute value; ``ValueError`` if a value is NaN or infinite."""
    largest = torch.cat([part.to(device).abs().amax(1).double() for part in features_ND.split(TILES["cpu"][1])])
    wrong_N = ~largest.isfinite()
    if wrong_N.any():
        rows = wrong_N.nonzero()[:, 0].tolist()
        raise ValueError(
            f"{name}: row {rows[0]} has a value that is NaN or infinite (such rows: {len(rows):,}). Has the network "
            "diverged, or is an image broken?"
        )
    return float(largest.max())
