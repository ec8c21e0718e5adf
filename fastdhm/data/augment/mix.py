"""Mixed images: mixup and cutmix, on the device, after all that is done to each image alone.

An image is mixed with its neighbour in the batch: rows 0 and 1 are a pair, 2 and 3, and so on. The order of an epoch is
random, so neighbours are as random as any partners. And a process, which has a run of even length of the batch's rows,
has both images of each of its pairs: no image is sent, and the result is that of one process.

Legend: B batch, P = B / 2 pairs, C channels, H height, W width.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from fastdhm.ops.philox import STREAM_MIX, draw

WORDS = 2**32  # of the generator


@dataclass(frozen=True)
class Mix:
    """How the images of a batch are mixed: each keeps ``share`` of itself and gets the rest from its partner."""

    share: float
    centre: tuple[float, float] | None = None
    """Where in an image, from 0 to 1 in height and width, the middle of the box is that cutmix swaps; None: mixup."""

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, bottom and right of the box in an image of that size; it is cut off where the image ends."""
        assert self.centre is not None
        ends = []
        for middle, length in zip(self.centre, (height, width), strict=True):
            half = int(0.5 * math.sqrt(1 - self.share) * length)
            ends.append((max(0, int(middle * length) - half), min(length, int(middle * length) + half)))
        (top, bottom), (left, right) = ends
        return top, left, bottom, right


def draw_mix(mixup: float, cutmix: float, *, seed: int, epoch: int, batch: int) -> Mix:
    """The mix of a batch, a pure function of (seed, epoch, number of the batch in the epoch).

    The share is drawn from Beta(alpha, alpha), where alpha is ``mixup`` (Zhang et al., "mixup: Beyond Empirical Risk
    Minimization", 2018) or ``cutmix`` (Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with
    Localizable Features", 2019). If both are above 0, a coin chooses. The host draws, so nothing waits for the device.
    """
    from scipy.special import betaincinv  # takes some 0.1 s

    coin, word, *centre = draw(batch, epoch, STREAM_MIX, seed)
    cuts = cutmix > 0 and (mixup == 0 or coin >> 31 == 1)
    alpha = cutmix if cuts else mixup
    share = float(betaincinv(alpha, alpha, (word + 0.5) / WORDS))
    return Mix(share, (centre[0] / WORDS, centre[1] / WORDS) if cuts else None)


def mix_(image_BCHW: Tensor, mix: Mix) -> float:
    """Mix the images in place; the share that each keeps of itself, of cutmix by the pixels that were swapped."""
    first_PCHW, second_PCHW = image_BCHW.unflatten(0, (-1, 2)).unbind(1)
    if mix.centre is None:
        kept_PCHW = first_PCHW.clone()
        first_PCHW.lerp_(second_PCHW, 1 - mix.share)
        second_PCHW.lerp_(kept_PCHW, 1 - mix.share)
        return mix.share
    height, width = image_BCHW.shape[-2:]
    top, left, bottom, right = mix.box(height, width)
    first_PCHW, second_PCHW = (part[..., top:bottom, left:right] for part in (first_PCHW, second_PCHW))
    kept_PCHW = first_PCHW.clone()
    first_PCHW.copy_(second_PCHW)
    second_PCHW.copy_(kept_PCHW)
    return 1 - (bottom - top) * (right - left) / (height * width)


def partners(target_B: Tensor) -> Tensor:
    """The label of each image's partner."""
    return target_B.unflatten(0, (-1, 2)).flip(1).flatten()
