"""From images on disk to batches. Importing this is cheap: FFCV, torchvision and torch load when first used.

sources: where images come from. images: one image file to 8-bit RGB. beton: the files that FFCV reads. loaders: the
batches of an epoch. augment: what is done to a batch on the device. options: how images are read; open: opens the data
of a run.
"""

from fastdhm.data.open import LoadedData, LoadedSplit, open_loaders, open_pictures, open_splits
from fastdhm.data.options import DataOptions

__all__ = ["DataOptions", "LoadedData", "LoadedSplit", "open_loaders", "open_pictures", "open_splits"]
