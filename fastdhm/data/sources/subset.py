"""A fixed, class-balanced part of a training set: the same images for every run and every seed.

Legend: N samples, K classes, S samples taken.
"""

from __future__ import annotations

import numpy as np

from fastdhm.errors import UserError
from fastdhm.ops.philox import STREAM_SUBSET, draw


def balanced_subset(target_N: np.ndarray, num_classes: int, count: int) -> np.ndarray:
    """The ``count`` samples to train on, ``int64 [S]`` in rising order.

    Each sample gets a random word that depends only on its number. The words rank the samples within their class, and
    the subset takes the first rank of all classes, then the second, and so on. So the classes differ by at most one
    image, unless one has too few; a smaller subset is part of a larger one; and the training seed has no effect.

    Raises:
        ValueError: more samples than there are, or fewer than classes.
    """
    if not num_classes <= count <= len(target_N):
        raise UserError(
            f"subset is {count:,}: must be at least {num_classes:,}, one image for each class, and at most "
            f"{len(target_N):,}, all training images"
        )
    high_N, low_N, _, _ = draw(np.arange(len(target_N), dtype=np.int64), 0, STREAM_SUBSET, 0)
    word_N = (high_N.astype(np.uint64) << np.uint64(32)) | low_N.astype(np.uint64)
    by_class_N = np.lexsort((word_N, target_N))
    size_K = np.bincount(target_N, minlength=num_classes)
    rank_N = np.empty_like(by_class_N)
    rank_N[by_class_N] = np.arange(len(target_N)) - np.repeat(np.cumsum(size_K) - size_K, size_K)
    return np.sort(np.lexsort((word_N, rank_N))[:count])
