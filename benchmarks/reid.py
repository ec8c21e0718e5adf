"""Ranking a gallery of Market-1501's size, against the usual evaluator, a loop over queries.

Legend: Q queries, G gallery, D features, M the matches of a query.

Peers from distances: the backends of :func:`fastdhm.reid.ranking_metrics` (``auto`` is ``cpp`` if the C++ extension is
built); ``loop``, a plain NumPy loop with a stable argsort per query, which gives equal distances the same order; and
``unstable loop``, the same with NumPy's faster default sort, which leaves that order to chance. Both loops compute
average precision without a Python loop over the gallery. Peers from features: ``rank``, and ``product``, only the
matrix product in it.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastdhm.benchmarks.harness import report
from fastdhm.benchmarks.harness.frame import Frame
from fastdhm.benchmarks.harness.timing import Peer
from fastdhm.reid import rank, ranking_metrics

SIZES = {"queries": 3368, "gallery": 19_732, "identities": 750, "junk": 3819, "distractors": 2798, "features": 2048}
QUICK = {"queries": 60, "gallery": 500, "identities": 20, "junk": 50, "distractors": 40, "features": 64}
CAMERAS = 6
MARKS = {
    "loop over auto": ("loop", "auto"),
    "unstable loop over auto": ("unstable loop", "auto"),
    "rank over product": ("rank", "product"),
}
TOLERANCE = 1e-6  # of an average precision: another order of equal distances may change it slightly


def bench(frame: Frame) -> int:
    """Time all of it; returns the exit status, 1 if a peer ranked wrong. Both loops have one thread."""
    sizes = QUICK if frame.quick else SIZES
    labels, where = random_labels(sizes), f"Q={sizes['queries']} G={sizes['gallery']}"
    with frame.measuring():
        comparisons = [
            frame.compare(f"{where}, distances", ranking_peers(sizes, labels), max_seconds=60),
            frame.compare(f"{where} D={sizes['features']}, features", feature_peers(sizes, labels), max_seconds=60),
        ]
    frame.plot_bars(comparisons, "Ranking")
    return frame.conclude(comparisons, marks=report.ratio_marks(comparisons, MARKS), settings=sizes)


def random_labels(sizes: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Identities of queries and gallery with the given shares of junk and distractors; then the cameras."""
    rng = np.random.default_rng(0)
    people = sizes["gallery"] - sizes["junk"] - sizes["distractors"]
    gallery_ids_G = np.concatenate(
        [
            np.full(sizes["junk"], -1),
            np.zeros(sizes["distractors"], dtype=np.int64),
            np.sort(rng.integers(1, sizes["identities"] + 1, people)),
        ]
    )
    query_ids_Q = np.sort(rng.integers(1, sizes["identities"] + 1, sizes["queries"]))
    query_cams_Q = rng.integers(1, CAMERAS + 1, sizes["queries"])
    return query_ids_Q, gallery_ids_G, query_cams_Q, rng.integers(1, CAMERAS + 1, sizes["gallery"])


def ranking_peers(sizes: dict[str, int], labels: tuple) -> list[Peer]:
    """The backends and both loops over the same random distances."""
    distances_QG = np.random.default_rng(1).random((sizes["queries"], sizes["gallery"]), dtype=np.float32)
    expected_Q = loop(distances_QG, *labels, kind="stable")

    def ours(impl: str) -> Callable[[], dict[str, Tensor]]:
        return lambda: {"ap": ranking_metrics(distances_QG, *labels, impl=impl).ap_Q}

    def theirs(kind: Literal["stable"] | None) -> Callable[[], dict[str, Tensor]]:
        return lambda: {"ap": loop(distances_QG, *labels, kind=kind)}

    def check(result: dict[str, Tensor]) -> str | None:
        error = (result["ap"].nan_to_num() - expected_Q.nan_to_num()).abs().max().item()
        return None if error <= TOLERANCE else f"an average precision is off by {error:.2g}, tolerance {TOLERANCE:.2g}"

    runs = {impl: ours(impl) for impl in ("auto", "numpy", "torch")}
    runs |= {"loop": theirs("stable"), "unstable loop": theirs(None)}
    return [Peer(name=name, run=run, check=check) for name, run in runs.items()]


def loop(
    distances_QG, query_ids_Q, gallery_ids_G, query_cams_Q, gallery_cams_G, *, kind: Literal["stable"] | None
) -> Tensor:
    """The average precision of each query by sorting its whole row; NaN without a match."""
    ap_Q = np.full(len(query_ids_Q), np.nan)
    for q, (identity, camera) in enumerate(zip(query_ids_Q, query_cams_Q, strict=True)):
        order_G = np.argsort(distances_QG[q], kind=kind)
        ids_G, cams_G = gallery_ids_G[order_G], gallery_cams_G[order_G]
        kept_G = (ids_G != -1) & ~((ids_G == identity) & (cams_G == camera))
        position_M = np.flatnonzero((ids_G == identity)[kept_G])
        if len(position_M):
            ap_Q[q] = np.mean(np.arange(1, len(position_M) + 1) / (position_M + 1))
    return torch.from_numpy(ap_Q)


def feature_peers(sizes: dict[str, int], labels: tuple) -> list[Peer]:
    """Ranking by features with the ten nearest kept, and the float64 product that every ranking needs."""
    generator = torch.Generator().manual_seed(2)
    query_QD, gallery_GD = (
        torch.randn(sizes[side], sizes["features"], generator=generator) for side in ("queries", "gallery")
    )
    wide_QD, wide_GD = query_QD.double(), gallery_GD.double()
    distances_QG = (wide_GD.square().sum(1) - 2 * wide_QD @ wide_GD.T).numpy()
    expected = loop(distances_QG, *labels, kind="stable").nanmean().item()

    def check(result: dict[str, Tensor]) -> str | None:
        error = abs(result["map"].item() - expected)
        return None if error <= TOLERANCE else f"mAP is off by {error:.2g}, tolerance {TOLERANCE:.2g}"

    return [
        Peer(
            name="rank",
            run=lambda: {"map": torch.tensor(rank(query_QD, gallery_GD, *labels).metrics.mean_ap)},
            check=check,
        ),
        Peer(name="product", run=lambda: {"product": wide_QD @ wide_GD.T}, check=lambda result: None),
    ]
