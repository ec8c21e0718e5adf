"""Which samples an epoch shows, and in which order: a pure function of (seed, epoch), the same for every loader.

Legend: N samples, K classes.
"""

from __future__ import annotations

import numpy as np

from fastdhm.ops.philox import STREAM_ORDER, draw


def epoch_order(num_samples: int, epoch: int, seed: int, shuffle: bool) -> np.ndarray:
    """The sample indices of an epoch in order, ``int64 [N]``: sorted by a random 64-bit word each when shuffled."""
    index_N = np.arange(num_samples, dtype=np.int64)
    if not shuffle:
        return index_N
    high_N, low_N, _, _ = draw(index_N, epoch, STREAM_ORDER, seed)
    return np.argsort(_joined(high_N, low_N), kind="stable")


def balanced_order(target_N: np.ndarray, epoch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As many sample indices as there are samples, shuffled, of every class as many; and which copy each is.

    The images of a small class come several times, all as often as each other up to one. Of a large class each epoch
    takes other images. Where N is no multiple of K, some classes come once more; they take turns. A draw with
    replacement, which is usual for this, has the same means and leaves more to chance. Both are ``int64 [N]``.
    """
    count = len(target_N)
    _, _, high_N, low_N = draw(np.arange(count, dtype=np.int64), epoch, STREAM_ORDER, seed)
    by_class_N = np.lexsort((_joined(high_N, low_N), target_N))
    _, size_K = np.unique(target_N, return_counts=True)
    each, more = divmod(count, len(size_K))
    takes_K = each + ((np.arange(len(size_K)) - epoch * more) % len(size_K) < more)
    rank_N = np.arange(count) - np.repeat(np.cumsum(takes_K) - takes_K, takes_K)  # in the class
    copy_N, place_N = np.divmod(rank_N, np.repeat(size_K, takes_K))
    index_N = by_class_N[np.repeat(np.cumsum(size_K) - size_K, takes_K) + place_N]
    order_N = epoch_order(count, epoch, seed, shuffle=True)
    return index_N[order_N], copy_N[order_N]


def repeated(order_N: np.ndarray, repeats: int, total: int) -> np.ndarray:
    """``repeats`` views of each sample in a row: the sample's own index, and ``total`` more for each further copy."""
    return (order_N[:, None] + total * np.arange(repeats)).flatten()


def _joined(high_N: np.ndarray, low_N: np.ndarray) -> np.ndarray:
    return (high_N.astype(np.uint64) << np.uint64(32)) | low_N.astype(np.uint64)
