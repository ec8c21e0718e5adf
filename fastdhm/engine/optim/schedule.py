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
    cycle_epochs: float = 10.0,
    cycle_factor: float = 1.0,
) -> float:
    """The learning rate at the time ``epoch`` (whole epochs done plus the fraction of this one).

    Warm-up first, from ``warmup_lr``; then ``constant``, ``step`` (``lr * gamma ** milestones passed``), ``cosine`` or
    ``linear`` from ``lr`` at the end of the warm-up to 0 at ``epochs``, or ``warm-restarts``: cosine from ``lr`` to 0
    in cycles, the first of ``cycle_epochs``, each of ``cycle_factor`` times the one before (Loshchilov and Hutter,
    "SGDR", ICLR 2017).
    """
    if epoch < warmup_epochs:
        return warmup_lr if warmup == "constant" else warmup_lr + (lr - warmup_lr) * epoch / warmup_epochs
    if schedule == "step":
        return lr * gamma ** bisect.bisect_right(milestones, epoch)
    if schedule == "constant":
        return lr
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
    if schedule == "warm-restarts":
        progress = share_of_cycle(epoch - warmup_epochs, cycle_epochs, cycle_factor)
    if schedule == "linear":
        return lr * (1 - progress)
    return lr * (1 + math.cos(math.pi * progress)) / 2


def share_of_cycle(since: float, first: float, factor: float) -> float:
    """How much of its cycle is over, in [0, 1), at the time ``since`` after the first cycle began."""
    if factor == 1:
        return since / first % 1
    number = math.floor(math.log1p(since * (factor - 1) / first) / math.log(factor) + 1e-9)
    begin = first * (factor**number - 1) / (factor - 1)
    return max(0.0, (since - begin) / (first * factor**number))


def describe_falls(schedule: str, milestones: tuple[float, ...], epochs: int) -> str:
    """For a person: the first milestone that the run does not reach; empty if it reaches all of them."""
    late = [at for at in milestones if at >= epochs]
    if schedule != "step" or not late:
        return ""
    reached = milestones[: -len(late)]
    falls = f"falls no more after epoch {reached[-1]:g}: the next" if reached else "never falls: the first"
    return f"the learning rate {falls} milestone is epoch {late[0]:g}, and the run has {epochs} epochs"


def mimic_scale(epoch: float, mimic_warmup: float) -> float:
    """The factor of the mimicking weights at the time ``epoch``: from 0 to 1 over ``mimic_warmup`` epochs, linearly."""
    return min(1.0, epoch / mimic_warmup) if mimic_warmup > 0 else 1.0


def image_phases(side: int, progressive: float) -> list[tuple[float, int]]:
    """(end as a share of the run, short side in pixels) of each phase; the reduced sides are even.

    The first ``progressive`` of the run is at lower resolution, where a step costs a quarter to a half: the first 60%
    of that at half of ``side``, the rest at three quarters.
    """
    reduced = ((0.6 * progressive, 0.5), (progressive, 0.75))
    return [*((until, max(2, 2 * round(side * factor / 2))) for until, factor in reduced), (1.0, side)]


def image_side(progress: float, side: int, progressive: float) -> int:
    """The short side of the training images after the share ``progress`` of the run, in pixels."""
    return next((part for until, part in image_phases(side, progressive) if progress < until), side)


def image_sides(begin: float, end: float, side: int, progressive: float) -> list[int]:
    """The values that :func:`image_side` takes from the share ``begin`` of the run up to ``end``, in order."""
    times = [begin, *(until for until, _ in image_phases(side, progressive) if begin < until < end)]
    return list(dict.fromkeys(image_side(time, side, progressive) for time in times))


def full_size_steps(step: float, run_steps: int, side: int, progressive: float) -> float:
    """The computation of the first ``step`` of a run's ``run_steps`` steps, in steps on images of the full size.

    A convolution's cost is proportional to the pixels, so a step on images of half the side counts a quarter.
    """
    done = begin = 0.0
    for until, part in image_phases(side, progressive):
        end = until * run_steps
        done += max(0.0, min(step, end) - begin) * (part / side) ** 2
        begin = max(begin, end)
    return done


def describe_images(epochs: int, side: int, progressive: float) -> str:
    """For a person: how the training images grow, and the size that the run validates on; empty if they do not grow."""
    if not progressive:
        return ""
    phases = image_phases(side, progressive)[: 2 if progressive == 1 else 3]
    *growing, (_, last) = phases
    grow = ", ".join(f"{part} pixels until epoch {until * epochs:.4g}" for until, part in growing)
    return f"{grow}, then {last}; validated at the size reached by then, at the end at {side}"
