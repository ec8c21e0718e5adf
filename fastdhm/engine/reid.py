"""Telling people apart with a run's network: features of queries and gallery, their ranking, and its pictures.

Legend: N images, D features, Q queries.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from fastdhm import models
from fastdhm.config import TrainConfig
from fastdhm.data import LoadedSplit
from fastdhm.data.augment.transforms import DeviceTransform
from fastdhm.data.loaders.ahead import copied_ahead
from fastdhm.data.loaders.crops import height_width
from fastdhm.data.sources.identity import Identity
from fastdhm.data.sources.people import CannotRank, check_rankable, sightings
from fastdhm.data.sources.source import is_reid
from fastdhm.engine import distributed
from fastdhm.engine.build import open_to_judge
from fastdhm.engine.device import autocast, pick_device, pick_own_precision, placed
from fastdhm.engine.evaluate import Interrupted, ShouldStop, until
from fastdhm.engine.run import Run
from fastdhm.engine.saved.record import Log, to_host
from fastdhm.errors import UserError, unknown
from fastdhm.reid import Ranking, Share, rank, rank_again
from fastdhm.reid.features import extract_features
from fastdhm.reid.pictures import Seen, cmc_plot, ranking_picture
from fastdhm.reid.ranking import METRICS
from fastdhm.system.console import Console
from fastdhm.system.files import write_csv

JUDGED = ("query", "gallery")  # the splits
RANKS = (1, 5, 10, 20)  # of the table
MAX_RANK, SHOWN_QUERIES, SHOWN_NEAREST = 50, 8, 10


class NonFiniteFeatures(UserError):
    """A network's features are NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class HowToRank:
    """What is compared, and how; its ``str`` says it to a person."""

    metric: str = "euclidean"
    flip_average: bool = False
    """Average each image's features with those of its mirror image."""
    rerank: bool = False
    """Re-rank by k-reciprocal neighbours."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise unknown("metric", self.metric, METRICS)

    def __str__(self) -> str:
        words = [f"{self.metric} distance", *(["flip-averaged"] * self.flip_average), *(["re-ranked"] * self.rerank)]
        return ", ".join(words)


@dataclass(frozen=True)
class Split:
    """The queries or the gallery: features, who is on each image and which camera took it, and the images."""

    feature_ND: Tensor
    ids_N: np.ndarray
    cams_N: np.ndarray
    images: Any  # a data source

    def seen(self, i: int) -> Seen:
        """Image ``i`` with what is known of it, for a picture."""
        return Seen(self.images.image(i), int(self.ids_N[i]), int(self.cams_N[i]))


@dataclass(frozen=True)
class PeopleRanked:
    """A gallery ranked for every query, in the single-query protocol."""

    query: Split
    gallery: Split
    ranking: Ranking
    how: HowToRank

    def percents(self) -> dict[str, float]:
        """``map_percent`` and ``rank1_percent``, ``rank5_percent``, ..."""
        cmc_R = to_host(100 * self.ranking.metrics.cmc_R)
        return {"map_percent": 100 * self.ranking.metrics.mean_ap} | {f"rank{r}_percent": cmc_R[r - 1] for r in RANKS}

    def record(self) -> dict[str, Any]:
        """The result as plain values, without the single queries."""
        metrics = self.ranking.metrics
        counts = {"queries": metrics.num_queries, "queries_without_match": metrics.num_without_match}
        return {
            **self.percents(),
            "cmc_percent": to_host(100 * metrics.cmc_R),
            **counts,
            "gallery": len(self.gallery.ids_N),
            **asdict(self.how),
        }


def rank_people(
    network: nn.Module,
    splits: Sequence[LoadedSplit],
    config: TrainConfig,
    how: HowToRank,
    console: Console,
    should_stop: ShouldStop | None = None,
) -> PeopleRanked:
    """Rank the gallery of a re-identification set for each of its queries, by a plain network's features.

    ``splits`` are queries and gallery. Each of several processes computes the features of its batches and gets those of
    all, then ranks its share of the queries; all return the same.

    Raises:
        CannotRank: see :func:`fastdhm.data.sources.people.check_rankable`; raised before any feature is computed.
        NonFiniteFeatures: see :func:`features`.
        Interrupted: ``should_stop`` became true between two batches.
    """
    device, share = pick_device(config.device), Share(distributed.rank(), distributed.count(), distributed.gathered)
    seen = [sightings(split.classes, split.source.target_N) for split in splits]
    check_rankable(config.dataset, *seen)  # for .beton files without images, nothing has checked this yet
    query, gallery = (
        Split(
            features(network, split, config, what, console, flip_average=how.flip_average, should_stop=should_stop),
            *labels,
            split.source,
        )
        for split, labels, what in zip(splits, seen, ("queries", "gallery"), strict=True)
    )
    labels = (query.ids_N, gallery.ids_N, query.cams_N, gallery.cams_N)
    ranking = (rank_again if how.rerank else rank)(
        query.feature_ND, gallery.feature_ND, *labels, how.metric,
        device=device, max_rank=MAX_RANK, top_k=SHOWN_NEAREST, share=share,
    )  # fmt: skip
    return PeopleRanked(query, gallery, ranking, how)


@contextmanager
def open_people(config: TrainConfig, console: Console) -> Iterator[list[LoadedSplit]]:
    """Queries and gallery, for :func:`rank_people`.

    Raises:
        ValueError: the data is missing.
    """
    with ExitStack() as opened:
        splits = open_to_judge(config, console, *JUDGED)
        for split in splits:
            opened.callback(split.close)
        yield splits


def read_ranked(config: TrainConfig, console: Console) -> Identity:
    """The identity of the images that a run ranks at its end; empty if the data set is not a re-identification set.

    They are read before the training: a bad file among them would otherwise be found only after it.
    """
    if not is_reid(config.dataset):
        return {}
    found: Identity = {}
    try:
        with open_people(config, console) as splits:
            found |= {name: split.identity for name, split in zip(JUDGED, splits, strict=True)}
    except CannotRank as error:  # no reason not to train
        console.print(f"people will not be ranked at the end: {error}")
    return found


def rank_at_end(network: nn.Module, run: Run, log: Log, console: Console, should_stop: ShouldStop) -> bool:
    """Rank people by a run's stripped network and log the result; False if a signal stopped it."""
    config = run.config
    try:
        with open_people(config, console) as splits:
            ranked = rank_people(network, splits, config, HowToRank(), console, should_stop)
    except Interrupted:
        return False
    except CannotRank as error:
        log.write("reid", step=run.at.step, epoch=run.now)  # nothing more is owed
        console.print(f"people are not ranked: {error}")
        return True
    log.write("reid", step=run.at.step, epoch=run.now, **ranked.percents())
    print_result(ranked, f"re-identification on {config.dataset} by the stripped network", console.print)
    return True


def feature_layer(network: nn.Module, config: TrainConfig) -> str:
    """The name of the layer whose input are a plain network's features; ``ValueError`` if it has none."""
    return models.classifier_of(network, (3, *height_width(config.image_size)))


def features(
    network: nn.Module,
    split: LoadedSplit,
    config: TrainConfig,
    what: str,
    console: Console,
    *,
    flip_average: bool = False,
    normalise: bool = False,
    should_stop: ShouldStop | None = None,
    to_all: bool = True,
) -> Tensor:
    """The features of each image of ``split``, which ``network`` gives its classifier: ``float32 [N, D]`` on the host.

    Of several processes each computes its batches, and all get the features of all; without ``to_all`` the first alone.

    Images are prepared as in the validation of the run with this ``config``; the progress bar calls them ``what``.

    Raises:
        NonFiniteFeatures: some are NaN or infinite; names the first such image.
        Interrupted: ``should_stop`` became true between two batches.
    """
    device = pick_device(config.device)
    network = placed(network, device)
    transform = DeviceTransform(config.mean, config.std).to(device)
    loader, rows, own_ND = split.loader, 0, torch.empty(0, 0)
    stop = should_stop or distributed.Agreed(lambda: None)
    bar, precision = console.counting(what, len(loader)), pick_own_precision(config.precision, device)
    with loader.epoch(0) as batches, bar as advance, autocast(device, precision):

        def images() -> Iterator[Tensor]:
            nonlocal rows
            for batch in until(stop, copied_ahead(batches, device), distributed.largest(len(loader))):
                rows = max(rows, len(batch.index_B))
                yield transform(batch.image_BHWC, batch.index_B, 0)
                advance(1)

        if len(loader):
            own_ND = extract_features(
                network, images(), layer=feature_layer(network, config), flip=flip_average, normalise=normalise,
                device=device,
            )  # fmt: skip
        else:  # there are more processes than batches
            list(images())
    rows, width = distributed.largest(rows), distributed.largest(own_ND.shape[1])
    own_ND = own_ND.reshape(len(own_ND), width)
    feature_ND = distributed.gathered(own_ND, rows, loader.num_samples, to_all=to_all)
    wrong_N = to_host((~feature_ND.isfinite().all(1)).nonzero()[:, 0])
    if wrong_N:
        raise NonFiniteFeatures(
            f"the features of {len(wrong_N):,} of {len(feature_ND):,} images are NaN or infinite, such as of "
            f"{split.source.label(wrong_N[0])}: the network is broken, or its weights are of a run that diverged"
        )
    return feature_ND


def print_result(ranked: PeopleRanked, title: str, say: Callable[..., None]) -> None:
    """Print a table of mAP and the first ranks, and notes on it, by ``say``."""
    say(title, style="italic")
    table = Table()
    for name in ("mAP %", *(f"rank-{r} %" for r in RANKS)):
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:.2f}" for value in ranked.percents().values()))
    say(table)
    counts = f"{len(ranked.query.ids_N):,} queries, {len(ranked.gallery.ids_N):,} images in the gallery"
    say(f"{counts}, {ranked.how}")
    if ranked.ranking.metrics.note:
        say(ranked.ranking.metrics.note)


def write_pictures(ranked: PeopleRanked, folder: Path, name: str) -> tuple[Path, Path]:
    """``ranking.png``, queries from the worst to the best with their nearest, and ``cmc.png``; ``name`` entitles it."""
    metrics = ranked.ranking.metrics
    by_ap_Q = np.argsort(metrics.ap_Q.numpy(), kind="stable")[: metrics.num_queries - metrics.num_without_match]
    places = np.linspace(0, len(by_ap_Q) - 1, min(SHOWN_QUERIES, len(by_ap_Q))).round().astype(int)
    shown = [int(q) for q in by_ap_Q[places]]
    ranking_png, cmc_png = folder / "ranking.png", folder / "cmc.png"
    ranking_picture(ranking_png, ranked.ranking.index_QK, ranked.query.seen, ranked.gallery.seen, shown, metrics.ap_Q)
    cmc_plot(cmc_png, {str(ranked.how): metrics.cmc_R}, name, {str(ranked.how): metrics.mean_ap})
    return ranking_png, cmc_png


def write_per_query(ranked: PeopleRanked, path: Path) -> None:
    """A row for each query as CSV: image, identity, camera, rank of its first match, average precision in percent.

    Rank and precision are empty for a query without a match.
    """
    metrics, query = ranked.ranking.metrics, ranked.query
    ranks_Q, ap_Q = to_host(metrics.first_rank_Q), to_host(100 * metrics.ap_Q)
    rows = []
    for q, (first, ap) in enumerate(zip(ranks_Q, ap_Q, strict=True)):
        about = query.images.label(q), query.ids_N[q], query.cams_N[q]
        rows.append([*about, *((first, f"{ap:.6f}") if first else ("", ""))])
    write_csv(path, ["image", "identity", "camera", "first_match_rank", "ap_percent"], rows)
