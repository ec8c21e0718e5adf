"""From images on disk to batches. Importing this costs nothing: FFCV, torchvision and torch load when first used.

sources: where images come from. images: one file to 8-bit RGB. beton: the files that FFCV reads. loaders: batches of an
epoch. augment: what is done to a batch on the device. options: how all of it is to be; open: all of it, opened.
"""

from fastdhm.data.open import LoadedData, LoadedSplit, open_loaders, open_pictures, open_splits
from fastdhm.data.options import DataOptions

__all__ = ["DataOptions", "LoadedData", "LoadedSplit", "open_loaders", "open_pictures", "open_splits"]
