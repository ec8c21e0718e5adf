"""Philox 4x32-10, a counter-based generator for all draws that must not depend on workers, ranks or resumes.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

The functions use plain integer arithmetic, so the same code runs on Python ints, numpy ``int64`` arrays and ``int64``
tensors on any device.
"""

MASK = 0xFFFFFFFF
ROUNDS = 10

# The last counter word is the purpose of a draw, so two purposes never share a draw.
STREAM_BRANCH_MASK = 0
STREAM_AUGMENT = 1
STREAM_ORDER = 2
STREAM_BRANCH_SET = 3
STREAM_CORRUPT = 4
STREAM_SUBSET = 5
STREAM_NOISE = 6
STREAM_MIX = 7
STREAM_OPERATIONS = 8


def split_seed(seed):
    """The two 32-bit key words of a 64-bit seed, low word first."""
    return seed & MASK, (seed >> 32) & MASK


def _multiply(word, constant):
    """High and low word of a product, computed with halves of the constant.

    No value exceeds 63 bits, so nothing relies on wrapping, which older versions of torch.compile get wrong.
    """
    low = word * (constant & 0xFFFF)
    high = word * (constant >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four 32-bit words from a counter ``(c0, c1, c2, c3)`` and a key ``(k0, k1)``, every word in [0, 2**32)."""
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + 0x9E3779B9) & MASK
        k1 = (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def draw(index, step, stream, seed):
    """Four 32-bit words for item ``index`` (< 2**32) at ``step`` (epoch or iteration, < 2**63), purpose ``stream``."""
    k0, k1 = split_seed(seed)
    return philox4x32(index & MASK, step & MASK, (step >> 32) & MASK, stream, k0, k1)
