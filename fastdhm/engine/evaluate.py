"""Validation: the error of every branch, or of a plain network.

Legend: M branches, B batch, K classes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdhm.data.augment.transforms import DeviceTransform, shrink
from fastdhm.data.loaders.ahead import copied_ahead
from fastdhm.data.loaders.loader import Batch, Loader
from fastdhm.engine import distributed
from fastdhm.engine.device import autocast
from fastdhm.engine.saved.record import to_array, to_host
from fastdhm.per_class.measures import Answers, NoAnswer

T = TypeVar("T")
LOGITS_BYTES = 2**28  # of float32 logits at once: with 1,000 classes and 3 branches, of 22,000 images
ROWS_BYTES = 2**24  # of them whose errors are counted at once on a CPU
ShouldStop = Callable[[], int | None]  # the signal that asks to end, if one has come


class Interrupted(Exception):
    """Validation, or the ranking of people, was asked to stop; it has changed nothing."""


def until(should_stop: ShouldStop, batches: Iterable[T], rounds: int = 0) -> Iterator[T]:
    """``batches``; :class:`Interrupted` as soon as ``should_stop``, asked before each of them, is true.

    It is asked ``rounds`` times or more: another process may have so many batches.
    """
    for batch in chain(batches, repeat(None)):
        if batch is None and rounds <= 0:
            return
        if should_stop():
            raise Interrupted
        rounds -= 1
        if batch is not None:
            yield batch


@dataclass(frozen=True)
class Errors:
    """Errors in percent and the cross-entropy of each branch, B0 first; no top-5 error for five classes or fewer."""

    top1_M: list[float]
    top5_M: list[float | None]
    ce_M: list[float]
    images: int

    def scalars(self, names: tuple[str, ...]) -> dict[str, float]:
        """As named scalars: ``val_error/B0``, ``val_top5_error/B0``, ``val_ce/B0``, ..."""
        columns: dict[str, Sequence[float | None]] = {
            "val_error": self.top1_M,
            "val_top5_error": self.top5_M,
            "val_ce": self.ce_M,
        }
        pairs = {kind: zip(names, column, strict=True) for kind, column in columns.items()}
        return {f"{kind}/{name}": v for kind, values in pairs.items() for name, v in values if v is not None}


def count_correct(logits_MBK: Tensor, target_B: Tensor, k: int) -> Tensor:
    """How many of the batch each branch has among its ``k`` highest logits, float64 ``[M]``.

    Of equal logits the first class wins. NaN is never right.
    """
    return (_ranks(logits_MBK, target_B) < k).sum(1).double()


def _ranks(logits_MBK: Tensor, target_B: Tensor) -> Tensor:
    """How many classes count as higher than the row's own, ``[M, B]``; too many to be right if a logit is not finite.

    A class counts as higher if its logit is, or if it is equal and comes first: never by luck.
    """
    target_logit_MB1 = logits_MBK.gather(2, target_B[None, :, None].expand(len(logits_MBK), -1, 1))
    position_K = torch.arange(logits_MBK.shape[2], device=logits_MBK.device)
    ties_MBK = (logits_MBK == target_logit_MB1) & (position_K < target_B[:, None])
    rank_MB = ((logits_MBK > target_logit_MB1) | ties_MBK).sum(2)
    is_finite_MB = logits_MBK.amin(2).isfinite() & logits_MBK.amax(2).isfinite()  # both are NaN if a logit is
    return rank_MB.where(is_finite_MB, 2**31)


class Kept:
    """What each branch says of every image, on the device until all is seen.

    A row is an image: its index and class; then, of every branch, the class that it names (K if logits are not finite),
    the probability of this class, and that of the image's own.
    """

    def __init__(self) -> None:
        self.rows: list[Tensor] = []  # of each batch, [B, 2 + 3 M], float64

    def add(self, logits_MBK: Tensor, batch: Batch) -> None:
        """Keep the answers to a batch; of equal logits the first class wins, as in :func:`count_correct`."""
        M, _, K = logits_MBK.shape
        first_MBK = torch.where(
            logits_MBK == logits_MBK.amax(2, keepdim=True), torch.arange(K, device=logits_MBK.device), K
        )
        said_MB = torch.where(logits_MBK.isfinite().all(2), first_MBK.amin(2), K)
        chance_MBK = logits_MBK.softmax(2)
        true_MB = chance_MBK.gather(2, batch.target_B[None, :, None].expand(M, -1, 1))[..., 0]
        columns = [batch.index_B, batch.target_B, *said_MB, *chance_MBK.amax(2), *true_MB]
        self.rows.append(torch.stack([column.double() for column in columns], 1))

    def answers(self, loader: Loader, num_classes: int) -> list[Answers]:
        """The answers of each branch to all images of ``loader``: of all processes, and in the first alone.

        Raises:
            NoAnswer: some logits are not finite; in every process.
        """
        rows, width = (distributed.largest(max((each.shape[axis] for each in self.rows), default=0)) for axis in (0, 1))
        own_NW = to_array(torch.cat(self.rows)) if self.rows else np.zeros((0, width))
        said = slice(2, 2 + (width - 2) // 3)
        broken = distributed.total(int((own_NW[:, said] == num_classes).any(1).sum()))
        if broken:
            raise NoAnswer(f"logits of {broken:,} of {loader.num_samples:,} images are NaN or infinite: the network is "
                           "broken, or its run diverged")  # fmt: skip
        all_NW = distributed.gathered(torch.from_numpy(own_NW), rows, loader.num_samples, to_all=False)
        all_WN = to_array(all_NW).T
        if not all_WN.shape[1]:
            return []
        index_N, target_N = all_WN[:2].astype(np.int64)
        said_MN, confidence_MN, true_MN = all_WN[2:].reshape(3, -1, all_WN.shape[1])
        said_MN = said_MN.astype(np.int64)
        return [Answers(index_N, target_N, *each) for each in zip(said_MN, confidence_MN, true_MN, strict=True)]


def _images_at_once(network: nn.Module) -> int:
    """How many images a network takes at a time, so that their logits are no larger than ``LOGITS_BYTES``.

    An image has as many logits as the classifiers have rows. Other matrices count too, so there may be fewer.
    """
    rows = sum(len(parameter) for parameter in network.parameters() if parameter.ndim == 2)
    return max(1, LOGITS_BYTES // (torch.float32.itemsize * max(rows, 1)))


def _sums(logits_MBK: Tensor, target_B: Tensor) -> Tensor:
    """Of each branch over a batch: how many are right, how many within the five highest, and the cross-entropies.

    On a CPU a few rows at a time: what is made of more logits than a cache holds is fetched from the system each time.
    """
    M, B, K = logits_MBK.shape
    rows = max(1, ROWS_BYTES // (M * K * torch.float32.itemsize)) if logits_MBK.device.type == "cpu" else B
    parts: list[Tensor] = []
    for few_MBK, own_B in zip(logits_MBK.split(rows, 1), target_B.split(rows), strict=True):
        ce_MB = F.cross_entropy(few_MBK.flatten(0, 1), own_B.repeat(M), reduction="none").view(M, -1)
        rank_MB = _ranks(few_MBK, own_B)
        correct = [(rank_MB < k).sum(1).double() for k in (1, 5)]
        parts.append(torch.stack([*correct, ce_MB.sum(1, dtype=torch.float64)]))
    return torch.stack(parts).sum(0)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    transform: DeviceTransform,
    device: torch.device,
    precision: torch.dtype,
    side: int,
    should_stop: ShouldStop | None = None,
    kept: Kept | None = None,
) -> Errors:
    """Top-1 and top-5 error and cross-entropy over ``loader``, of each branch of a model or of a plain network.

    Each of several processes evaluates its own batches. They are those of one process, and so is the result.

    The network sees the images with a short side of ``side`` pixels. ``kept`` gets its answers, image by image.

    Raises:
        Interrupted: ``should_stop`` came true between two batches.
    """
    was_training = model.training
    model.eval()
    images = _images_at_once(model)
    sums: list[Tensor] = []  # of each batch, [3, M]
    classes, stop = 0, should_stop or distributed.Agreed(lambda: None)  # it tells who else has ended
    try:
        with loader.epoch(0) as batches:
            for batch in until(stop, copied_ahead(batches, device), distributed.largest(len(loader))):
                parts: list[Tensor] = []
                for part in batch.parts(images):
                    image_BCHW = shrink(transform(part.image_BHWC, part.index_B, 0), side)
                    with autocast(device, precision):
                        logits = model(image_BCHW)
                    logits_MBK = (logits if logits.ndim == 3 else logits[None]).float()
                    classes = logits_MBK.shape[2]
                    parts.append(_sums(logits_MBK, part.target_B))
                    if kept is not None:
                        kept.add(logits_MBK, part)
                sums.append(torch.stack(parts).sum(0))
    finally:
        model.train(was_training)
    branches, classes = distributed.largest(sums[0].shape[1] if sums else 1), distributed.largest(classes)
    own_N3M = torch.stack(sums) if sums else torch.zeros(0, 3, branches, dtype=torch.float64, device=device)
    # added in the order that one process has: the same bits
    sums_3M = distributed.gathered(own_N3M, 1, distributed.total(len(loader))).sum(0)
    top1_M, top5_M, ce_M = to_host(sums_3M / loader.num_samples)
    top5_M = [100 * (1 - n) if classes > 5 else None for n in top5_M]
    return Errors([100 * (1 - n) for n in top1_M], top5_M, ce_M, loader.num_samples)
