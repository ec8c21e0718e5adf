"""Re-identification: ranking metrics, rankings of any size, re-ranking, features, pictures.

It stands alone: tensors or arrays in, plain objects out, nothing of training.
"""

from fastdhm.reid.metrics import RankingMetrics, ranking_metrics
from fastdhm.reid.ranking import Ranking, rank, rank_distances
from fastdhm.reid.rerank import rerank

__all__ = ["Ranking", "RankingMetrics", "rank", "rank_distances", "ranking_metrics", "rerank"]
