"""The small data sets that are kept in memory: Fashion-MNIST and CIFAR.

Legend: N samples, B batch, H height, W width, C channels.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastdhm.data.sources.walk import ImagesGone
from fastdhm.errors import UserError
from fastdhm.system.paths import shown

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdhm.data.images.read import Shrink

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
FASHION_MNIST_CLASSES = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
IDX_NAMES = {"train": "train", "val": "t10k"}


class ArraySource:
    """Images of one size held as ``uint8``: ``[N, H, W, 3]``, or ``[N, H, W, 1]`` for greyscale."""

    note: str | None = None

    def __init__(self, name: str, split: str, image_NHWC: np.ndarray, target_N: np.ndarray, classes: tuple[str, ...]):
        self.name, self.split, self.classes = name, split, tuple(classes)
        self.image_NHWC = np.ascontiguousarray(image_NHWC, dtype=np.uint8)
        self.target_N = np.asarray(target_N, dtype=np.int64)
        assert self.image_NHWC.ndim == 4
        assert len(self.image_NHWC) == len(self.target_N)
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.target_N)

    @property
    def size_HW(self) -> tuple[int, int]:
        return self.image_NHWC.shape[1], self.image_NHWC.shape[2]

    @property
    def channels(self) -> int:
        return self.image_NHWC.shape[3]

    def pixels(self, index_B: np.ndarray) -> np.ndarray:
        """``uint8 [B, H, W, 3]``, a copy."""
        image_BHWC = self.image_NHWC[index_B]
        return image_BHWC if image_BHWC.shape[3] == 3 else np.repeat(image_BHWC, 3, axis=3)

    def image(self, i: int, shrink: Shrink | None = None) -> Image:
        from PIL import Image

        return Image.fromarray(self.pixels(np.array([i]))[0])

    def label(self, i: int) -> str:
        return f"{self.name}/{self.split}[{i}]"

    def digest(self) -> str:
        if self._digest is None:
            digest = hashlib.sha256(repr((self.image_NHWC.shape, self.classes)).encode())
            digest.update(self.image_NHWC.data)
            digest.update(self.target_N.data)
            self._digest = digest.hexdigest()
        return self._digest

    fingerprint = digest


def load_fashion_mnist(data_dir: Path) -> tuple[ArraySource, ArraySource]:
    """Fashion-MNIST from the Debian package, else from ``data_dir``, else downloaded there by torchvision."""
    ours = data_dir / "FashionMNIST" / "raw"
    folders = [folder for folder in (DEBIAN_FASHION_MNIST, ours) if _has_idx_files(folder)]
    if not folders:
        _download_fashion_mnist(data_dir, ours)
        folders = [ours]
    return _read_fashion_mnist(folders[0], "train"), _read_fashion_mnist(folders[0], "val")


def _idx_path(folder: Path, split: str, what: str) -> Path:
    return folder / f"{IDX_NAMES[split]}-{what}-ubyte.gz"


def _has_idx_files(folder: Path) -> bool:
    return all(
        _idx_path(folder, split, what).is_file() for split in IDX_NAMES for what in ("images-idx3", "labels-idx1")
    )


def _read_fashion_mnist(folder: Path, split: str) -> ArraySource:
    image_NHW = _read_idx(_idx_path(folder, split, "images-idx3"), dims=3)
    target_N = _read_idx(_idx_path(folder, split, "labels-idx1"), dims=1)
    if len(image_NHW) != len(target_N) or target_N.max(initial=0) >= len(FASHION_MNIST_CLASSES):
        raise UserError(f"{shown(folder)}: the images and labels of '{IDX_NAMES[split]}' do not belong together")
    return ArraySource("fashion-mnist", split, image_NHW[..., None], target_N, FASHION_MNIST_CLASSES)


def _read_idx(path: Path, dims: int) -> np.ndarray:
    """An array of bytes in the idx format; torchvision reads only files that are already unpacked."""
    try:
        data = gzip.decompress(path.read_bytes())  # a third faster than reading in parts
        magic, *shape = np.frombuffer(data, ">u4", 1 + dims).tolist()
        if magic != 0x0800 + dims:
            raise ValueError(f"magic number {magic:#x}")
        return np.frombuffer(data, np.uint8, offset=4 * (1 + dims)).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{shown(path)}: not a complete idx file ({error}): delete it, to download it again") from error


def _download_fashion_mnist(data_dir: Path, folder: Path) -> None:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(data_dir), download=True)
    except (OSError, RuntimeError) as error:
        raise ImagesGone(
            f"Fashion-MNIST is not in {DEBIAN_FASHION_MNIST} or {folder}, and cannot be downloaded: {error}. "
            f"Install it with 'apt-get install dataset-fashion-mnist', or put its four idx .gz files into {folder}."
        ) from error


def load_cifar(dataset: str, data_dir: Path) -> tuple[ArraySource, ArraySource]:
    """CIFAR-10 or CIFAR-100 from ``data_dir``, downloaded there by torchvision if need be."""
    from torchvision import datasets

    reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset]
    return _read_cifar(reader, dataset, data_dir, "train"), _read_cifar(reader, dataset, data_dir, "val")


def _read_cifar(reader, dataset: str, data_dir: Path, split: str) -> ArraySource:
    # The files are pickles, which could execute code. torchvision opens a file only if its MD5 is the one in
    # torchvision's source, so only the published files are loaded.
    try:
        data = _existing_or_downloaded(reader, data_dir, split == "train")
    except (OSError, RuntimeError) as error:
        folder = data_dir / reader.base_folder
        kind = UserError if folder.exists() else ImagesGone
        raise kind(
            f"data set '{dataset}' is missing or incomplete in {folder}, and cannot be downloaded: {error}. "
            f"Unpack {reader.url} into {data_dir}."
        ) from error
    return ArraySource(dataset, split, data.data, np.array(data.targets), tuple(data.classes))


def _existing_or_downloaded(reader, data_dir: Path, train: bool):
    try:
        return reader(str(data_dir), train=train)
    except RuntimeError:  # the file is absent, or its checksum is not the published one
        return reader(str(data_dir), train=train, download=True)
