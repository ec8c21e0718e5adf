"""What changes from iteration to iteration: learning rate, ramp of the mimicking weights, resolution of the images.

All are pure functions of the time in epochs, so a resumed run needs no state for them.
"""

import bisect
import math


def learning_rate(
    epoch: float,
    *,
    lr: float,
    epochs: int,
    schedule: str,
    milestones: tuple[float, ...] = (),
    gamma: float = 0.1,
    warmup_epochs: float = 0.0,
    warmup_lr: float = 0.0,
    warmup: str = "linear",
) -> float:
    """The learning rate at the time ``epoch`` (whole epochs done plus the fraction of this one).

    Warm-up first, from ``warmup_lr``; then ``step`` (``lr * gamma ** milestones passed``), or ``cosine`` or ``linear``
    from ``lr`` at the end of the warm-up to 0 at ``epochs``.
    """
    if epoch < warmup_epochs:
        return warmup_lr if warmup == "constant" else warmup_lr + (lr - warmup_lr) * epoch / warmup_epochs
    if schedule == "step":
        return lr * gamma ** bisect.bisect_right(milestones, epoch)
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
    if schedule == "linear":
        return lr * (1 - progress)
    return lr * (1 + math.cos(math.pi * progress)) / 2


def mimic_scale(epoch: float, mimic_warmup: float) -> float:
    """The factor of the mimicking weights at the time ``epoch``: from 0 to 1 over ``mimic_warmup`` epochs, linearly."""
    return min(1.0, epoch / mimic_warmup) if mimic_warmup > 0 else 1.0


def image_side(progress: float, side: int, progressive: float) -> int:
    """The short side of the training images after the share ``progress`` of the run, in pixels; even where reduced.

    The first ``progressive`` of the run is at lower resolution, where a step costs a quarter to a half: the first 60%
    of that at half of ``side``, the rest at three quarters.
    """
    if progress >= progressive:
        return side
    factor = 0.5 if progress < 0.6 * progressive else 0.75
    return max(2, 2 * round(side * factor / 2))


def image_sides(begin: float, end: float, side: int, progressive: float) -> list[int]:
    """The values that :func:`image_side` takes from the share ``begin`` of the run up to ``end``, in order."""
    times = [begin, *(time for time in (0.6 * progressive, progressive) if begin < time < end)]
    return list(dict.fromkeys(image_side(time, side, progressive) for time in times))
