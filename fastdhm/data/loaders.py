"""Batches of an epoch, in an order and with crops that depend only on (seed, epoch): one interface, two loaders.

``ffcv`` reads a ``.beton``; ``torch`` reads the images themselves. They give the same samples in the same batches with
the same crop boxes, and the same bytes where a box needs no resizing; where it does, FFCV averages areas (OpenCV) and
torch uses its antialiased bilinear filter. Legend: N samples, B batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from fastdhm.data._ffcv import HOW_TO_GET, why_not
from fastdhm.data._pool import default_workers
from fastdhm.data.crops import CROPS, Crop, epoch_order
from fastdhm.errors import UserError

if TYPE_CHECKING:
    import torch

    from fastdhm.data.sources import Source

__all__ = ["Batch", "Loader", "build_loader", "default_workers", "epoch_order", "pick_kind"]


@dataclass
class Batch:
    """One batch in host memory, the reader's to keep."""

    image_BHWC: torch.Tensor  # uint8
    target_B: torch.Tensor  # int64
    index_B: torch.Tensor  # int64, the sample's index in the data set


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


def pick_kind(kind: str) -> tuple[Literal["ffcv", "torch"], str]:
    """The loader to use for ``auto``, ``ffcv`` or ``torch``, and why."""
    if kind == "torch":
        return "torch", "asked for"
    if kind not in ("auto", "ffcv"):
        raise UserError(f"unknown loader '{kind}'; known: auto, ffcv, torch")
    reason = why_not()
    if reason is None:
        return "ffcv", "asked for" if kind == "ffcv" else "FFCV is installed"
    if kind == "ffcv":
        raise UserError(f"loader 'ffcv': {reason}. {HOW_TO_GET}")
    return "torch", reason


def build_loader(
    kind: Literal["ffcv", "torch"],
    source: Source | None,
    *,
    beton: Path | None,
    batch_size: int,
    image_size: int,
    crop: Crop,
    crop_ratio: float,
    seed: int,
    workers: int | None,
    shuffle: bool,
    drop_last: bool,
) -> Loader:
    """A loader of ``image_size`` squares: from the file ``beton`` (``ffcv``), or from ``source`` (``torch``)."""
    for name, value in (("batch size", batch_size), ("image size", image_size)):
        if value < 1:
            raise UserError(f"{name} {value}: it has to be 1 or more")
    if crop not in CROPS:
        raise UserError(f"unknown crop '{crop}'; known: {', '.join(CROPS)}")
    if not 0 < crop_ratio <= 1:
        raise UserError(f"crop ratio {crop_ratio}: it has to be above 0 and at most 1")
    if workers is not None and workers < 0:
        raise UserError(f"workers {workers}: it has to be 0 or more")
    options = {
        "batch_size": batch_size,
        "image_size": image_size,
        "crop": crop,
        "crop_ratio": crop_ratio,
        "seed": seed,
        "workers": default_workers() if workers is None else workers,
        "shuffle": shuffle,
        "drop_last": drop_last,
    }
    if kind == "ffcv":
        from fastdhm.data.ffcv_loader import FfcvLoader

        return FfcvLoader(beton, **options)
    from fastdhm.data.torch_loader import TorchLoader

    return TorchLoader(source, **options)


def num_batches(num_samples: int, batch_size: int, drop_last: bool) -> int:
    """Batches an epoch; refuses the batch size that would leave none."""
    if drop_last and batch_size > num_samples:
        raise UserError(
            f"batch size {batch_size} is larger than the {num_samples} training images, which leaves no batch; "
            f"choose {num_samples} or less"
        )
    return num_samples // batch_size if drop_last else -(-num_samples // batch_size)


def epoch_batches(
    num_samples: int, batch_size: int, batches: int, *, epoch: int, start_batch: int, seed: int, shuffle: bool
) -> list:
    """The sample indices of each batch of an epoch that is still to come: a list of ``int64 [B]``."""
    if not 0 <= start_batch <= batches:
        raise ValueError(f"start_batch {start_batch} is outside the epoch's {batches} batches")
    order_N = epoch_order(num_samples, epoch, seed, shuffle)
    return [order_N[b * batch_size : (b + 1) * batch_size] for b in range(start_batch, batches)]
