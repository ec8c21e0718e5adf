"""What is done to an image before the network sees it."""

from dataclasses import dataclass
from typing import Literal

from fastdhm.config.rules import AT_LEAST_ZERO, SHARE, Rule, setting

MAX_SIDE = 8192  # pixels; a batch of larger images fits into no memory


def _is_size(size: int | tuple[int, int]) -> bool:
    sides = (size, size) if isinstance(size, int) else size
    return len(sides) == 2 and all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in sides)


SIZE = Rule(f"1 to {MAX_SIDE}, or two of those as [HEIGHT,WIDTH]", _is_size)
MEAN = Rule("three numbers in [0, 1]", lambda rgb: len(rgb) == 3 and all(0 <= x <= 1 for x in rgb))
STD = Rule("three numbers in (0, 1]", lambda rgb: len(rgb) == 3 and all(0 < x <= 1 for x in rgb))


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images and augmentation."""

    __slots__ = ()

    image_size: int | tuple[int, int] = setting(32, SIZE)
    """Pixels that the network sees: a side, or HEIGHT,WIDTH."""
    crop: Literal["pad", "scale", "shift", "center", "enlarge", "whole"] = "pad"
    """Crop: pad, scale, shift, center, enlarge or whole.
    pad pads the image with zeros and crops anywhere. scale crops a random area of a random aspect. shift resizes the
    image and crops anywhere. center is not random. whole resizes the whole image, whatever its aspect is. enlarge does
    that half of the time, and otherwise resizes to 1.125 of the size and crops anywhere."""
    pad: int = setting(4, AT_LEAST_ZERO)
    """Zero pixels that the pad crop adds on each side."""
    crop_ratio: float = setting(1.0, Rule("above 0 and at most 1", lambda x: 0 < x <= 1))
    """Validation crop over the image's shorter side.
    0.875 is a crop of 224 from an image resized to 256."""
    flip: bool = True
    """Mirror half of the training images, at random."""
    progressive: float = setting(0.0, SHARE)
    """Share of the run, at its start, on smaller images.
    In [0, 1]. Half the sides first, then three quarters of them."""
    mean: tuple[float, float, float] = setting((0.485, 0.456, 0.406), MEAN)
    """Mean of each colour channel.
    In [0, 1]; it is subtracted."""
    std: tuple[float, float, float] = setting((0.229, 0.224, 0.225), STD)
    """Standard deviation of each colour channel.
    In (0, 1]; it divides."""
