"""The reference's images: a torch ``DataLoader`` over PIL images, each transformed alone by torchvision.

Legend: N samples, H height, W width, C channels.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from fastdhm.config import TrainConfig
from fastdhm.data.loaders.crops import height_width
from fastdhm.data.sources.folder import FolderSource
from fastdhm.data.sources.load import load_sources
from fastdhm.data.sources.source import Source, gives_arrays
from fastdhm.errors import UserError
from fastdhm.system.paths import default_data_dir

CROPS = ("pad", "scale", "shift", "center")  # those that torchvision's plain transforms can do
BILINEAR = transforms.InterpolationMode.BILINEAR
POLICIES = {"none": [], "trivial": [transforms.TrivialAugmentWide(interpolation=BILINEAR)]}


class Images(Dataset):
    """Images in memory as one array, like torchvision's own small data sets."""

    def __init__(self, image_NHWC: np.ndarray, target_N: np.ndarray, transform: Callable):
        self.image_NHWC, self.targets, self.transform = image_NHWC, target_N.tolist(), transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.image_NHWC[i])), self.targets[i]


def training_transform(config: TrainConfig) -> transforms.Compose:
    """The released code's transform of a training image, for the crop in ``config``."""
    height, width = height_width(config.image_size)
    if config.crop not in CROPS:
        raise UserError(f"crop is {config.crop}: the reference only has {', '.join(CROPS)}")
    cut = {
        "pad": [transforms.RandomCrop((height, width), padding=config.pad)],
        "scale": [transforms.RandomResizedCrop((height, width))],
        "shift": [
            transforms.Resize(round(min(height, width) / config.crop_ratio)),
            transforms.RandomCrop((height, width)),
        ],
        "center": [transforms.CenterCrop((height, width))],
    }[config.crop]
    if config.augment not in POLICIES:
        raise UserError(f"augment is {config.augment}: the reference only has {', '.join(POLICIES)}")
    flip = [transforms.RandomHorizontalFlip()] if config.flip else []
    flip += POLICIES[config.augment]
    return transforms.Compose([*cut, *flip, transforms.ToTensor(), transforms.Normalize(config.mean, config.std)])


def training_set(source: Source, config: TrainConfig) -> Dataset:
    """The training images of a source, transformed: a folder is read file by file, other sources are in memory."""
    transform = training_transform(config)
    if isinstance(source, FolderSource):
        return ImageFolder(str(source.root), transform)
    assert gives_arrays(source)
    return Images(source.pixels(np.arange(len(source))), source.target_N, transform)


def training_loader(config: TrainConfig, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches of a run's training images; a smaller last one is left out, as in the engine."""
    source, _ = load_sources(config.dataset, Path(config.data_dir or default_data_dir()))
    if config.batch_size > len(source):
        raise UserError(f"batch size {config.batch_size} is larger than the {len(source)} training images: choose less")
    return DataLoader(
        training_set(source, config), config.batch_size, shuffle=True, num_workers=workers, drop_last=True,
        pin_memory=torch.cuda.is_available(), generator=torch.Generator().manual_seed(config.seed),
    )  # fmt: skip
