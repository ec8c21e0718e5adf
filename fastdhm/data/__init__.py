"""From images on disk to batches. Importing this costs nothing: FFCV, torchvision and torch load when first used.

sources: where images come from. images: one file to 8-bit RGB. beton: the files that FFCV reads. loaders: batches of an
epoch. augment: what is done to a batch on the device. open: all of it, opened for a run.
"""

from fastdhm.data.open import LoadedData, LoadedSplit, open_loaders, open_pictures, open_splits

__all__ = ["LoadedData", "LoadedSplit", "open_loaders", "open_pictures", "open_splits"]
