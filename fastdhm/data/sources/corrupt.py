"""Corrupt training labels (App. E): some replaced by random classes, the same for a whole run.

Legend: N samples of the training split, K classes.
"""

from __future__ import annotations

import numpy as np

from fastdhm.ops.philox import STREAM_CORRUPT, draw


def corrupt_targets(target_N: np.ndarray, num_classes: int, share: float, seed: int) -> np.ndarray:
    """Labels of which a share is random, as in Zhang et al. (ICLR 2017), whose corrupt data App. E learns from.

    Each label is, with probability ``share`` and independently of the others, replaced by one drawn uniformly from all
    K classes, which may be the true one: about ``share * (1 - 1 / K)`` of them change. For sample ``i``

        w = draw(i, 0, STREAM_CORRUPT, seed);  corrupt if w[0] < share * 2**32;  its label: floor(w[1] * K / 2**32)

    with Philox's 32-bit words: a pure function of (seed, i), so that a larger share corrupts the same labels, into the
    same classes, and more.

    Args:
        target_N: integers in [0, K); not changed.
        num_classes: K.
        share: in [0, 1].
        seed: int in [0, 2**64).

    Returns:
        ``int64 [N]``.
    """
    words = draw(np.arange(len(target_N), dtype=np.int64), 0, STREAM_CORRUPT, seed)
    return np.where(words[0] < share * 2**32, words[1] * num_classes >> 32, target_N).astype(np.int64)
