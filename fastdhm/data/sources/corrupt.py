"""Corrupt training labels (App. E): some are replaced by random classes, the same ones during a whole run.

Legend: N samples of the training split, K classes.
"""

from __future__ import annotations

import numpy as np

from fastdhm.ops.philox import STREAM_CORRUPT, draw


def corrupt_targets(target_N: np.ndarray, num_classes: int, share: float, seed: int) -> np.ndarray:
    """Labels of which a share is random, as in Zhang et al. (ICLR 2017); App. E trains on such data.

    Each label is replaced with probability ``share``, independently of the others. The new label is drawn uniformly
    from all K classes and may be the true one: about ``share * (1 - 1 / K)`` of the labels change. For sample ``i``

        w = draw(i, 0, STREAM_CORRUPT, seed);  corrupt if w[0] < share * 2**32;  its label: floor(w[1] * K / 2**32)

    with Philox's 32-bit words. This is a pure function of (seed, i): a larger share corrupts the same labels, into the
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
