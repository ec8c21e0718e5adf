"""The protocol of a source of images, and the names of the data sets.

Legend: N samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeGuard

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdhm.data.images.read import Shrink

REID_DATASETS = ("market1501", "dukemtmc", "reid-folder:PATH", "reid-synthetic")
DATASETS = ("fashion-mnist", "cifar10", "cifar100", "imagenet", "folder:PATH", "synthetic", *REID_DATASETS)
SPLITS = ("train", "val")
REID_SPLITS = (*SPLITS, "query", "gallery")
PEEKED = 16  # about so many samples


class Source(Protocol):
    """The images of one split, with their classes; small, picklable, and read from worker processes."""

    name: str
    split: str
    classes: tuple[str, ...]
    target_N: np.ndarray  # int64, an index into classes
    note: str | None  # a message for the user, such as on ignored files

    def __len__(self) -> int: ...

    def image(self, i: int, shrink: Shrink | None = None) -> Image:
        """Sample ``i`` as 8-bit RGB; raises a ``UserError`` that names it if it cannot be decoded.

        One that is read from a file may be smaller, if ``shrink`` allows it: see :func:`~images.read.read_image`.
        """

    def label(self, i: int) -> str:
        """The name of sample ``i`` in a message: its path, or ``fashion-mnist/train[17]``."""

    def digest(self) -> str:
        """A sha256 that changes when the samples or their files change."""

    def fingerprint(self) -> str | None:
        """A sha256 of the samples that is the same for a copy of the data; None where it is not known."""


class ArraysSource(Source, Protocol):
    """A source of images of one size, which it can give many at a time: see :func:`gives_arrays`."""

    size_HW: tuple[int, int]

    def pixels(self, index_B: np.ndarray) -> np.ndarray:
        """``uint8 [B, H, W, 3]``, a copy."""


def gives_arrays(source: Source) -> TypeGuard[ArraysSource]:
    """Whether ``source`` gives arrays of images and not only one image at a time."""
    return hasattr(source, "pixels")


def peeked(source: Source) -> range:
    """A few samples from all parts of the source, to check before training, as checking all would take too long."""
    return range(0, len(source), max(1, len(source) // PEEKED))


def is_reid(dataset: str) -> bool:
    """Whether ``dataset`` is a re-identification set, which is evaluated by ranking a gallery."""
    return dataset.partition(":")[0] in {name.partition(":")[0] for name in REID_DATASETS}


def split_names(dataset: str) -> tuple[str, ...]:
    """The splits of ``dataset`` that have a ``.beton`` file each."""
    return REID_SPLITS if is_reid(dataset) else SPLITS


def number_classes(split: str, ids_N: np.ndarray, cams_N: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """``target_N`` and the classes: the identities in training, pairs of identity and camera in query and gallery.

    So the ``.beton`` file of a query or gallery has identities and cameras even if the image files are gone: see
    :func:`people.sightings`.
    """
    if split == "train":
        identities, target_N = np.unique(ids_N, return_inverse=True)
        return target_N, tuple(f"{identity:04}" for identity in identities.tolist())
    seen_K2, target_N = np.unique(np.stack([ids_N, cams_N], axis=1), axis=0, return_inverse=True)
    return target_N.reshape(-1), tuple(f"{identity:04}_c{camera}" for identity, camera in seen_K2.tolist())


def chunks(source: Source) -> list[range]:
    """The samples that a worker gets at a time: enough to make the round trip cheap, few enough to show progress."""
    step = 256 if gives_arrays(source) else 16
    return [range(start, min(start + step, len(source))) for start in range(0, len(source), step)]
