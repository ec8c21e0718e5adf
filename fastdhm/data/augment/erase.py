"""Random erasing: a rectangle of some images is filled with the mean colour.

Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, as torchvision's ``RandomErasing`` does it on normalised
images.

Legend: B views, E those that lose a rectangle.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fastdhm.data.augment.policy import COLOUR_BLOCKS, ERASE_BLOCKS, words

AREA = (0.02, 0.33)  # of the image
ASPECT = (0.3, 3.3)  # height over width


def erased_boxes(
    probability: float, view_B: np.ndarray, epoch: int, seed: int, size_HW: tuple[int, int]
) -> dict[int, tuple[int, int, int, int]]:
    """Which views of a batch lose a rectangle, by their row, and which: top, left, height, width.

    Of ten tries, the first that is smaller than the image counts; where none is, the view stays whole.
    """
    height, width = size_HW
    coin_B = words(view_B, epoch, seed, COLOUR_BLOCKS[1:])[2][0]
    row_E = np.flatnonzero(coin_B < probability * 2**32)
    area_RE, aspect_RE, top_RE, left_RE = words(view_B[row_E], epoch, seed, ERASE_BLOCKS)
    area_RE = height * width * (AREA[0] + (AREA[1] - AREA[0]) * (area_RE / 2**32))
    log_low, log_high = np.log(ASPECT)
    aspect_RE = np.exp(log_low + (log_high - log_low) * (aspect_RE / 2**32))
    high_RE, wide_RE = (np.rint(np.sqrt(x)).astype(np.int64) for x in (area_RE * aspect_RE, area_RE / aspect_RE))
    fits_RE = (high_RE > 0) & (high_RE < height) & (wide_RE > 0) & (wide_RE < width)
    top_RE, left_RE = (height - high_RE + 1) * top_RE >> 32, (width - wide_RE + 1) * left_RE >> 32
    box_4RE = np.stack([top_RE, left_RE, high_RE, wide_RE])
    first_E = fits_RE.argmax(0)
    return {
        int(row): tuple(box_4RE[:, first_E[e], e].tolist()) for e, row in enumerate(row_E) if fits_RE[first_E[e], e]
    }


def erase(image_BCHW: Tensor, boxes: dict[int, tuple[int, int, int, int]]) -> None:
    """Fill the boxes with 0, in place: of normalised images that is the mean colour."""
    for row, (top, left, height, width) in boxes.items():
        image_BCHW[row, :, top : top + height, left : left + width] = 0
