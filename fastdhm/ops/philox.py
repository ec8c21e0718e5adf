"""Philox 4x32-10, the counter-based generator behind every random draw that must not depend on workers, ranks or resumes.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

The function is written in plain integer arithmetic, so the same text runs on Python ints, numpy ``int64`` arrays, ``int64``
tensors on any device, and inside numba. A product of two 32-bit words overflows a signed 64-bit integer by wrapping; its
high word is still right once the sign bits of the shift are masked off.
"""

MASK = 0xFFFFFFFF
ROUNDS = 10

# The last counter word says what a draw is for, so no two purposes ever share a draw.
STREAM_BRANCH_MASK = 0
STREAM_AUGMENT = 1
STREAM_ORDER = 2


def split_seed(seed):
    """The two 32-bit key words of a 64-bit seed, low word first."""
    return seed & MASK, (seed >> 32) & MASK


def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four 32-bit words from a 128-bit counter ``(c0, c1, c2, c3)`` and a 64-bit key ``(k0, k1)``, each word in [0, 2**32)."""
    for _ in range(ROUNDS):
        p0 = c0 * 0xD2511F53
        p1 = c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0 = (k0 + 0x9E3779B9) & MASK
        k1 = (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def draw(index, step, stream, seed):
    """Four 32-bit words for item ``index`` (< 2**32) at ``step`` (an epoch or an iteration, < 2**64) of a purpose ``stream``."""
    k0, k1 = split_seed(seed)
    return philox4x32(index & MASK, step & MASK, (step >> 32) & MASK, stream, k0, k1)
