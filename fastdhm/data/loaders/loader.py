"""What a loader is, and which batches it gives: the protocol and the options that all three share.

Legend: N samples, S of them that are taken, B batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from fastdhm.data.loaders.crops import CROPS, RESIZING, Crop, ImageSize, crop_boxes, height_width
from fastdhm.data.loaders.order import balanced_order, epoch_order, repeated
from fastdhm.errors import UserError, unknown
from fastdhm.system import processors

if TYPE_CHECKING:
    import torch


Kind = Literal["resident", "ffcv", "torch"]


@dataclass
class Batch:
    """One batch, the reader's to keep: in host memory, or where a resident loader holds the images."""

    image_BHWC: torch.Tensor  # uint8
    target_B: torch.Tensor  # int64
    index_B: torch.Tensor  # int64, the sample's index in the data set; above, another copy of it
    view_B: np.ndarray | None = None  # the same on the host, which draws by it

    def __post_init__(self) -> None:
        if self.view_B is None and self.index_B.device.type == "cpu":
            self.view_B = self.index_B.numpy()

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``; the host does not wait for a copy from page-locked memory."""
        image_BHWC, target_B, index_B = (tensor.to(device, non_blocking=True) for tensor in self.tensors())
        return Batch(image_BHWC, target_B, index_B, self.view_B)

    def parts(self, images: int) -> Iterator[Batch]:
        """The batch, at most so many images at a time."""
        for start in range(0, len(self.target_B), images):
            part = slice(start, start + images)
            view_B = None if self.view_B is None else self.view_B[part]
            yield Batch(self.image_BHWC[part], self.target_B[part], self.index_B[part], view_B)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images, targets and indices."""
        return self.image_BHWC, self.target_B, self.index_B


class Loader(Protocol):
    """Batches of one split, an epoch at a time."""

    num_samples: int

    def __len__(self) -> int:
        """Batches an epoch."""

    def epoch(self, epoch: int, start_batch: int = 0) -> AbstractContextManager[Iterator[Batch]]:
        """The batches of an epoch from ``start_batch`` on, the same as if it had been read from its start.

        ``with loader.epoch(3) as batches: for batch in batches: ...``; leaving the block ends the work behind it, read
        to its end or not.
        """

    def close(self) -> None:
        """Give everything back; the loader is not used again."""


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """Which batches a loader of any kind gives; the defaults are evaluation's: in order, every sample, no draws."""

    batch_size: int
    image_size: ImageSize
    """What comes out: the side of a square, or (height, width), in pixels."""
    crop: Crop = "center"
    crop_ratio: float = 1.0
    """Of the crops center and shift, see ``crops.crop_boxes``."""
    seed: int = 0
    shuffle: bool = False
    drop_last: bool = False
    workers: int | None = None
    """Threads (ffcv) or processes (torch); None: one per processor."""
    device: str = "cpu"
    """Where a resident loader holds the images; the others' batches are in host memory."""
    share: tuple[int, int] = (0, 1)
    """Which process of how many this is: of each training batch it reads its rows, of evaluation's batches its own."""
    parts: int = 1
    """Parts a training batch is cut into: each process has a share of every part."""
    repeats: int = 1
    """Show each sample of an epoch so often, see :meth:`epoch_batches`."""
    balanced: bool = False
    """Show as many samples of every class in an epoch, see ``order.balanced_order``."""
    subset: int | None = None
    """Give this many of the samples, see ``subset.balanced_subset``; None: all."""
    samples_S: np.ndarray | None = field(default=None, compare=False, repr=False)
    """Which those are, in rising order: :func:`build_loader` fills it in."""
    target_S: np.ndarray | None = field(default=None, compare=False, repr=False)
    """Their classes, if ``balanced``: :func:`build_loader` fills them in."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch size {self.batch_size}: must be 1 or more")
        height_width(self.image_size)
        if self.crop not in CROPS:
            raise unknown("crop", self.crop, CROPS)
        if not 0 < self.crop_ratio <= 1:
            raise UserError(f"crop ratio {self.crop_ratio}: must be above 0 and at most 1")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers {self.workers}: must be 0 or more")
        assert self.drop_last or (self.repeats == 1 and not self.balanced), "only training repeats samples"

    @property
    def size_HW(self) -> tuple[int, int]:
        return height_width(self.image_size)

    @property
    def num_workers(self) -> int:
        return processors.count() if self.workers is None else self.workers

    def keeps_pixels(self, size_HW: tuple[int, int]) -> bool:
        """Whether images of that size are cut and never resized."""
        if self.crop in RESIZING:
            return False
        height_B, width_B = (np.array([side]) for side in size_HW)
        return tuple(self.boxes(height_B, width_B, np.zeros(1, np.int64), 0)[0, 2:]) == self.size_HW

    def count(self, num_samples: int) -> int:
        """How many of ``num_samples`` an epoch has."""
        return num_samples if self.samples_S is None else len(self.samples_S)

    def num_batches(self, num_samples: int) -> int:
        """Batches an epoch of ``num_samples`` that this process reads; refuses a batch size that would leave none."""
        if self.drop_last and self.batch_size > num_samples:
            raise UserError(
                f"batch size {self.batch_size} is larger than the {num_samples} training images, which leaves no "
                f"batch; choose {num_samples} or less"
            )
        if self.drop_last:
            return num_samples // self.batch_size
        rank, count = self.share
        return len(range(rank, -(-num_samples // self.batch_size), count))

    def epoch_batches(self, total: int, epoch: int, start_batch: int) -> list[np.ndarray]:
        """The views of each batch of an epoch that is still to come, of ``total`` samples: a list of ``int64 [B]``.

        View ``v`` is of sample ``v % total``. Without copies it is the sample's index. With ``repeats``, an epoch is as
        long as without: it shows one sample in ``repeats``, each so often in a row, with draws of its own each time
        (Touvron et al., "DeiT", 2021, after Hoffer et al., "Augment your batch", CVPR 2020). In a batch the first
        copies come first, so that several processes, or parts, get different ones.
        """
        num_samples = self.count(total)
        batches = self.num_batches(num_samples)
        if not 0 <= start_batch <= batches:
            raise ValueError(f"start_batch {start_batch} is outside the epoch's {batches} batches")
        if self.balanced:
            assert self.target_S is not None
            order_N, copy_N = balanced_order(self.target_S, epoch, self.seed)
        else:
            order_N, copy_N = epoch_order(num_samples, epoch, self.seed, self.shuffle), np.int64(0)
        order_N = (order_N if self.samples_S is None else self.samples_S[order_N]) + total * copy_N
        rank, count = self.share
        if self.drop_last:
            view_N = repeated(order_N, self.repeats, total)[: batches * self.batch_size]
            if self.repeats > 1:
                view_NB = view_N.reshape(batches, -1)
                view_N = np.take_along_axis(view_NB, np.argsort(view_NB // total, axis=1, kind="stable"), axis=1)
            batches_NB = view_N.reshape(batches, self.parts, count, -1)[:, :, rank]
            return list(batches_NB.reshape(batches, -1)[start_batch:])
        starts = range(rank * self.batch_size, num_samples, count * self.batch_size)
        return [order_N[start : start + self.batch_size] for start in starts[start_batch:]]

    def boxes(self, height_B: np.ndarray, width_B: np.ndarray, view_B: np.ndarray, epoch: int) -> np.ndarray:
        """What to cut out of each image, ``int64 [B, 4]``: see ``crops.crop_boxes``."""
        height, width = self.size_HW
        return crop_boxes(
            self.crop, height_B, width_B, view_B, epoch, self.seed, self.crop_ratio, aspect=width / height
        )

    def box(self, width: int, height: int, view: int, epoch: int) -> list[int]:
        """That of a single image: (top, left, height, width)."""
        return self.boxes(np.array([height]), np.array([width]), np.array([view]), epoch)[0].tolist()
