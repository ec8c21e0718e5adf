"""Re-identification: ranking metrics, rankings of any size, re-ranking, features, pictures.

Functions take tensors or arrays and return plain objects. Nothing here needs the rest of a training run.
"""

from fastdhm.reid._blocks import Share
from fastdhm.reid.metrics import RankingMetrics, ranking_metrics
from fastdhm.reid.ranking import Ranking, rank, rank_again, rank_distances
from fastdhm.reid.rerank import rerank

__all__ = ["Ranking", "RankingMetrics", "Share", "rank", "rank_again", "rank_distances", "ranking_metrics", "rerank"]
