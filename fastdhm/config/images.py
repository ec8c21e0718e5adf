"""What is done to an image before the network sees it."""

import math
from dataclasses import dataclass
from typing import Literal

from fastdhm.config.rules import AT_LEAST_ONE, AT_LEAST_ZERO, SHARE, Rule, setting

MAX_SIDE = 8192  # pixels; a batch of larger images fits into no memory


def _is_size(size: int | tuple[int, int]) -> bool:
    sides = (size, size) if isinstance(size, int) else size
    return len(sides) == 2 and all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in sides)


SIZE = Rule(f"1 to {MAX_SIDE}, or two of those as [HEIGHT,WIDTH]", _is_size)
JITTER = Rule(
    "one number, or those of brightness, contrast, saturation and perhaps hue, each 0 or more, and hue at most 0.5",
    lambda spread: (
        len(spread) in (0, 1, 3, 4) and all(0 <= x < math.inf for x in spread) and all(hue <= 0.5 for hue in spread[3:])
    ),
)
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
    augment: str = "none"
    """Policy of augmentation: none, trivial, or rand-N-M such as rand-2-9.
    trivial does one operation to each training image, at a strength that is drawn: TrivialAugment, wide (Müller and
    Hutter, 2021). rand-N-M does N operations, all at strength M of 30: RandAugment (Cubuk et al., 2020). Operations and
    strengths are torchvision's."""
    color_jitter: tuple[float, ...] = setting((), JITTER)
    """Change colours at random: 0.4, or brightness,contrast,saturation,hue.
    Each factor is drawn from 1 - x to 1 + x, and hue is shifted by up to x of the circle, 0.5 at most. One number is
    for brightness, contrast and saturation. As torchvision's ColorJitter."""
    random_grey: float = setting(0.0, SHARE)
    """Probability that a training image turns grey, in [0, 1]."""
    random_erase: float = setting(0.0, SHARE)
    """Probability that a training image loses a rectangle, in [0, 1].
    It is 2% to 33% of the image, and becomes the mean colour: random erasing (Zhong et al., 2020)."""
    repeats: int = setting(1, AT_LEAST_ONE)
    """Show each image so often in an epoch, each time augmented anew.
    An epoch has as many steps as without, and shows one image in so many of them: repeated augmentation as in DeiT
    (Touvron et al., 2021), after Hoffer et al. (2020). The copies stand in one batch, if its size is a multiple."""
    progressive: float = setting(0.0, SHARE)
    """Share of the run, at its start, on smaller images.
    In [0, 1]. Half the sides first, then three quarters of them."""
    mean: tuple[float, float, float] = setting((0.485, 0.456, 0.406), MEAN)
    """Mean of each colour channel.
    In [0, 1]; it is subtracted."""
    std: tuple[float, float, float] = setting((0.229, 0.224, 0.225), STD)
    """Standard deviation of each colour channel.
    In (0, 1]; it divides."""
