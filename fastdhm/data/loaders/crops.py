"""The crop box of each sample of an epoch: a pure function of (seed, epoch, view of the sample).

All loaders take their boxes from here, in numpy, so that a box cannot depend on the loader, on a worker, or on how a
compiler rounds. Legend: N samples, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fastdhm.errors import UserError
from fastdhm.ops.philox import STREAM_AUGMENT, draw

ImageSize = int | tuple[int, int]  # pixels: the side of a square, or (height, width)
Crop = Literal["pad", "scale", "shift", "center", "enlarge", "whole"]
CROPS: tuple[Crop, ...] = ("pad", "scale", "shift", "center", "enlarge", "whole")
STRETCHING: tuple[Crop, ...] = ("enlarge", "whole")  # they fit the image to the output's shape, whatever its own
RESIZING: tuple[Crop, ...] = ("scale", "enlarge")  # the size of what they cut is drawn
SCALE = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
TRIES = 10
# The paper says "slightly larger". This is the factor, and one half the probability, of Random2DTranslation in the
# widely used re-identification toolkits (torchreid and its descendants).
ENLARGED = 1.125


def height_width(image_size: ImageSize | Sequence[int]) -> tuple[int, int]:
    """Height and width of an image size: one number is a square's side; a ``UserError`` for anything but pixels."""
    try:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        fine = isinstance(height, int) and isinstance(width, int) and min(height, width) >= 1
    except (TypeError, ValueError):  # no pair of numbers
        fine = False
    if not fine:
        raise UserError(f"image size {image_size}: one whole number of pixels or (height, width), each 1 or more")
    return height, width


def evaluation_crop(crop: Crop) -> Crop:
    """What a network trained with ``crop`` is judged on: the whole image if training stretches it, else its middle."""
    return "whole" if crop in STRETCHING else "center"


def crop_boxes(
    crop: Crop,
    height_B: np.ndarray,
    width_B: np.ndarray,
    index_B: np.ndarray,
    epoch: int,
    seed: int,
    ratio: float = 1.0,
    aspect: float = 1.0,
) -> np.ndarray:
    """What to cut out of each image before resizing: ``int64 [B, 4]`` of (top, left, height, width).

    ``aspect`` is the output's width over its height. ``center``: the centred box of that aspect whose sides are
    ``ratio`` of the largest such box. ``pad``: the same with ratio 1; the device pads and crops at random. ``shift``:
    that box in a random place, as resizing the largest to size / ratio and then cropping size would give. ``scale``: a
    random area and aspect, the rule of torchvision's ``RandomResizedCrop``, around the output's aspect.

    ``whole``: the image, stretched to the output's shape. ``enlarge``: for every other image that; for the others a box
    of height / 1.125 and width / 1.125 in a random place, as stretching to 1.125 times the size and then cropping size
    would give.
    """
    height_B, width_B, index_B = (np.asarray(a, dtype=np.int64) for a in (height_B, width_B, index_B))
    if crop == "scale":
        return _scale_boxes(height_B, width_B, index_B, epoch, seed, aspect)
    if crop not in CROPS:
        raise ValueError(f"crop {crop!r} is not one of {', '.join(CROPS)}")
    if crop in STRETCHING:
        share_B = _enlarged_shares(index_B, epoch, seed) if crop == "enlarge" else 1.0
        h_B, w_B = _sides(height_B * share_B), _sides(width_B * share_B)
    else:
        share = 1.0 if crop == "pad" else ratio
        h_B = _sides(np.minimum(height_B, width_B / aspect) * share)
        w_B = _sides(np.minimum(height_B * aspect, width_B) * share)
    if crop in ("shift", "enlarge"):
        row_B, column_B, _, _ = _words(index_B, epoch, 0, seed)
        top_B, left_B = _below(height_B - h_B + 1, row_B), _below(width_B - w_B + 1, column_B)
    else:
        top_B, left_B = (height_B - h_B) // 2, (width_B - w_B) // 2
    return np.stack([top_B, left_B, h_B, w_B], axis=1)


def _enlarged_shares(index_B: np.ndarray, epoch: int, seed: int) -> np.ndarray:
    """The share of each side that is cut out: all of it, or 1 / 1.125, as a coin falls."""
    _, _, coin_B, _ = _words(index_B, epoch, 0, seed)
    return np.where(coin_B >> 31, 1 / ENLARGED, 1.0)


def _sides(length_B: np.ndarray) -> np.ndarray:
    """The nearest whole number of pixels, at least one."""
    return np.maximum(1, np.rint(length_B).astype(np.int64))


def _words(index_B: np.ndarray, epoch: int, block: int, seed: int):
    """Four words a sample. The stream's own block is the device transform's (pad crop, flip); a box's lie above it."""
    return draw(index_B, epoch, STREAM_AUGMENT + ((1 + block) << 8), seed)


def _below(limit_B: np.ndarray, word_B: np.ndarray) -> np.ndarray:
    """A whole number in [0, limit) from a 32-bit word."""
    return (word_B * limit_B) >> 32


def _scale_boxes(height_B, width_B, index_B, epoch: int, seed: int, centre: float) -> np.ndarray:
    aspects = centre * ASPECT[0], centre * ASPECT[1]
    box_B4 = _fallback_boxes(height_B, width_B, aspects)
    todo_B = np.arange(len(index_B))
    log_low, log_high = np.log(aspects)
    for block in range(TRIES):
        high, wide = height_B[todo_B], width_B[todo_B]
        area_word, aspect_word, row_word, column_word = _words(index_B[todo_B], epoch, block, seed)
        area = high * wide * (SCALE[0] + (SCALE[1] - SCALE[0]) * (area_word / 2**32))
        aspect = np.exp(log_low + (log_high - log_low) * (aspect_word / 2**32))
        w, h = (np.rint(np.sqrt(side)).astype(np.int64) for side in (area * aspect, area / aspect))
        fits = (w > 0) & (w <= wide) & (h > 0) & (h <= high)
        top, left = _below(high - h + 1, row_word), _below(wide - w + 1, column_word)
        box_B4[todo_B[fits]] = np.stack([top, left, h, w], axis=1)[fits]
        todo_B = todo_B[~fits]
        if not len(todo_B):
            break
    return box_B4


def _fallback_boxes(height_B: np.ndarray, width_B: np.ndarray, aspects: tuple[float, float]) -> np.ndarray:
    """Where no try fits: the whole image, or as much of its middle as the aspect allows."""
    low, high = aspects
    shape_B = width_B / height_B
    h_B = np.where(shape_B < low, np.minimum(height_B, np.rint(width_B / low)), height_B).astype(np.int64)
    w_B = np.where(shape_B > high, np.minimum(width_B, np.rint(height_B * high)), width_B).astype(np.int64)
    h_B, w_B = np.maximum(1, h_B), np.maximum(1, w_B)
    return np.stack([(height_B - h_B) // 2, (width_B - w_B) // 2, h_B, w_B], axis=1)
