"""A box of an image resized to any shape, bilinearly and with antialiasing: the rule of torch's and Pillow's filter.

FFCV's own resizing averages areas, but only where both sides shrink. Where one grows OpenCV falls back on something
else, which to twice the size copies every pixel: just what Market-1501's 128 x 64 pictures at 256 x 128 would get.

Legend: H height, W width, C channels, X the box's width, N and M pixels of a side before and after, T taps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np


@functools.cache  # compiling takes a second, and every loader asks
def make_resample(jit: Callable) -> Callable:
    """``resample(source_HWC, top, left, height, width, out_HWC)``: fill ``out_HWC`` with that box of ``source_HWC``.

    Both are ``uint8``. These are plain loops, for ``jit`` to compile.
    """
    taps = jit(_taps)

    def resample(source_HWC, top, left, height, width, out_HWC):
        out_height, out_width = out_HWC.shape[0], out_HWC.shape[1]
        first_H, weight_HT = taps(height, out_height)
        first_W, weight_WT = taps(width, out_width)
        row_XC = np.empty((width, 3), np.float32)
        for y in range(out_height):
            row_XC[:] = 0.5  # to round: the conversion to uint8 cuts off
            for t in range(weight_HT.shape[1]):
                weight, line = weight_HT[y, t], top + min(first_H[y] + t, height - 1)
                for x in range(width):
                    for c in range(3):
                        row_XC[x, c] += weight * source_HWC[line, left + x, c]
            for x in range(out_width):
                red, green, blue = np.float32(0), np.float32(0), np.float32(0)
                for t in range(weight_WT.shape[1]):
                    weight, column = weight_WT[x, t], min(first_W[x] + t, width - 1)
                    red += weight * row_XC[column, 0]
                    green += weight * row_XC[column, 1]
                    blue += weight * row_XC[column, 2]
                out_HWC[y, x, 0] = np.uint8(red)
                out_HWC[y, x, 1] = np.uint8(green)
                out_HWC[y, x, 2] = np.uint8(blue)

    return jit(resample)


@functools.cache
def make_average(jit: Callable, resize_crop: Callable) -> Callable:
    """The same where a side grows; else by FFCV's ``resize_crop``, which averages areas and is faster."""
    average, stretch = jit(resize_crop), make_resample(jit)

    def resample(source_HWC, top, left, height, width, out_HWC):
        if height < out_HWC.shape[0] or width < out_HWC.shape[1]:
            stretch(source_HWC, top, left, height, width, out_HWC)
        else:
            average(source_HWC, top, top + height, left, left + width, out_HWC)

    return jit(resample)


def _taps(before, after):
    """The first pixel that counts for each new one, ``[M]``, and the weights from there on, ``[M, T]``.

    New pixel ``o`` lies at ``c = (o + 1/2) N / M``; pixel ``i`` weighs ``max(0, 1 - |i + 1/2 - c| / s)`` with
    ``s = max(1, N / M)``, and the weights of the pixels that are there are scaled to sum to 1.
    """
    step = before / after
    reach = max(1.0, step)
    first_M = np.empty(after, np.int64)
    weight_MT = np.zeros((after, int(np.ceil(2 * reach)) + 1), np.float32)  # one more than there are, for rounding
    for o in range(after):
        centre = (o + 0.5) * step
        first, end = max(0, int(centre - reach + 0.5)), min(before, int(centre + reach + 0.5))
        first_M[o] = first
        for i in range(first, end):
            weight_MT[o, i - first] = max(0.0, 1 - abs(i + 0.5 - centre) / reach)
        weight_MT[o] /= weight_MT[o].sum()
    return first_M, weight_MT
