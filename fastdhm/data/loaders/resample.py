"""A box of an image resized to any shape, bilinearly and with antialiasing: the rule of torch's and Pillow's filter.

FFCV's own resizing is slower, and averages areas only where both sides shrink. Where one grows OpenCV falls back on
something else, which to twice the size copies every pixel: just what Market-1501's 128 x 64 pictures at 256 x 128 get.

Legend: H height, W width, C channels, N and M pixels of a side before and after, T taps, V = 3W the numbers of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np


@functools.cache  # compiling takes a second, and every loader asks
def make_resample(jit: Callable) -> Callable:
    """``resample(source_HWC, top, left, height, width, out_HWC)``: fill ``out_HWC`` with that box of ``source_HWC``.

    Both are contiguous ``uint8`` of 3 channels. These are plain loops for ``jit`` to compile, which makes vectors of
    those over the numbers of a row.
    """
    taps, mix = jit(_taps), jit(_mix)

    def resample(source_HWC, top, left, height, width, out_HWC):
        if height == out_HWC.shape[0] and width == out_HWC.shape[1]:
            out_HWC[:] = source_HWC[top : top + height, left : left + width]
            return
        first_H, weight_HT = taps(height, out_HWC.shape[0])
        first_W, weight_WT = taps(width, out_HWC.shape[1])
        source_HV = source_HWC.reshape(source_HWC.shape[0], 3 * source_HWC.shape[1])
        out_HV = out_HWC.reshape(out_HWC.shape[0], 3 * out_HWC.shape[1])
        row_V, mixed_V = np.empty(3 * max(width, 2), np.float32), np.empty(3 * out_HWC.shape[1], np.float32)
        for y in range(out_HWC.shape[0]):
            row_V[:] = 0.5  # to round: the conversion to uint8 cuts off
            for t in range(weight_HT.shape[1]):
                line = top + min(first_H[y] + t, height - 1)
                weight, line_V = weight_HT[y, t], source_HV[line, 3 * left : 3 * (left + width)]
                for v in range(3 * width):
                    row_V[v] += weight * line_V[v]
            mix(row_V, first_W, weight_WT, mixed_V)
            for v in range(len(mixed_V)):
                out_HV[y, v] = np.uint8(mixed_V[v])

    return jit(resample)


def _mix(row_V, first_W, weight_WT, mixed_V):
    """The pixels of a row: a pixel's three colours are sums of their own over the taps, two at a time for speed."""
    for x in range(len(first_W)):
        v, weight, next_weight = 3 * first_W[x], weight_WT[x, 0], weight_WT[x, 1]
        red = weight * row_V[v] + next_weight * row_V[v + 3]
        green = weight * row_V[v + 1] + next_weight * row_V[v + 4]
        blue = weight * row_V[v + 2] + next_weight * row_V[v + 5]
        for t in range(2, weight_WT.shape[1]):
            v, weight = 3 * (first_W[x] + t), weight_WT[x, t]
            red += weight * row_V[v]
            green += weight * row_V[v + 1]
            blue += weight * row_V[v + 2]
        mixed_V[3 * x], mixed_V[3 * x + 1], mixed_V[3 * x + 2] = red, green, blue


def _taps(before, after):
    """The first pixel that counts for each new one, ``[M]``, and the weights of T pixels from there on, ``[M, T]``.

    New pixel ``o`` lies at ``c = (o + 1/2) N / M``; pixel ``i`` weighs ``max(0, 1 - |i + 1/2 - c| / s)`` with
    ``s = max(1, N / M)``, and the weights of the pixels that are there are scaled to sum to 1.
    """
    step = before / after
    reach = max(1.0, step)
    taps = max(2, min(before, int(np.ceil(2 * reach))))  # that are within reach; of a single pixel, it and none
    first_M = np.empty(after, np.int64)
    weight_MT = np.empty((after, taps), np.float32)
    for o in range(after):
        centre = (o + 0.5) * step
        first_M[o] = max(0, min(int(centre - reach + 0.5), before - taps))
        for t in range(taps):
            weight_MT[o, t] = max(0.0, 1 - abs(first_M[o] + t + 0.5 - centre) / reach) if t < before else 0
        weight_MT[o] /= weight_MT[o].sum()
    return first_M, weight_MT
