"""A run that is planned to a time and ends with it: how many epochs fit, and where in its schedule it stands."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastdhm.engine import distributed
from fastdhm.engine.timer import Stopwatch

SAVES = 20  # at least, in the time of a run: what was planned is planned anew at each
Plan = tuple[float, float, float]  # from when on, where in the schedule that is, and when the schedule ends; in epochs


def time_in_schedule(now: float, plan: Plan | None, epochs: int) -> float:
    """Where in the schedule of ``epochs`` a run stands at the time ``now``: there, if it has no ``plan``."""
    if plan is None:
        return now
    since, begun, end = plan
    return begun + (epochs - begun) * min(1.0, (now - since) / (end - since))


def fitted(now: float, at: float, epochs: int, fit: float) -> Plan | None:
    """The plan of a run that stands at ``at`` in the schedule, and has time for ``fit`` more epochs.

    It ends the schedule with a whole epoch if there is time for one. ``None`` if the run has time for all of its
    epochs, each at its own pace.
    """
    end = now + min(fit, epochs - at)
    if fit >= epochs - at and at == now:
        return None
    whole = math.floor(end + 1e-6)
    end = whole if whole > now else end
    return (now, at, end) if end > now and at < epochs else None


@dataclass
class Mark:
    """What a run had done when it was planned last."""

    now: float
    work: float
    trained_s: float


class Hours:
    """The time that a run may take, its validations included, over all processes that worked on it.

    ``work(t)`` is the computation up to the time ``t`` of the schedule, in epochs at the full image size.
    """

    def __init__(self, hours: float | None, epochs: int, work: Callable[[float], float]):
        self.limit_s = math.inf if hours is None else 3600 * hours
        self.epochs, self.work = epochs, work
        self.clock, self.validation_s = Stopwatch(), 0.0
        self.mark: Mark | None = None
        self._up = distributed.Agreed(lambda: self.left_s() <= 0)

    def left_s(self) -> float:
        """Seconds left to train in: a last validation takes as long as the one before."""
        return self.limit_s - self.clock.seconds - self.validation_s

    def up(self) -> bool:
        """Whether the time is over, for all processes alike; asked once after each step."""
        return self.limit_s < math.inf and bool(self._up())

    def save_minutes(self, minutes: float) -> float:
        """Minutes between two checkpoints, if a run without a limit has ``minutes``."""
        return min(minutes, self.limit_s / 60 / SAVES)

    def validated(self, seconds: float) -> None:
        """Note how long a validation took."""
        self.validation_s = seconds

    def measure_from(self, now: float, plan: Plan | None, trained_s: float) -> None:
        """Measure the speed from the time ``now`` on, of a run that has trained for ``trained_s`` seconds.

        That is after the first step, which compiles and fills caches: by its speed a run of days would end in minutes.
        """
        self.mark = Mark(now, self.work(time_in_schedule(now, plan, self.epochs)), trained_s)

    def plan(self, now: float, plan: Plan | None, trained_s: float, eval_every: int) -> Plan | None:
        """The plan from now on, by the speed since the last one; the first process decides.

        It follows ``plan``, and is this where nothing was trained since, or no speed is known.
        """
        at, mark = time_in_schedule(now, plan, self.epochs), self.mark
        if mark is None or self.limit_s == math.inf or now <= mark.now or at >= self.epochs:
            return plan
        done = self.work(at)
        full_epoch_s = (trained_s - mark.trained_s) / max(done - mark.work, 1e-9)  # of the schedule
        full_epoch_s *= (at - time_in_schedule(mark.now, plan, self.epochs)) / (now - mark.now)
        rest = (self.work(self.epochs) - done) / (self.epochs - at)  # the mean work of an epoch
        fit = max(0.0, self.left_s()) / max(rest * full_epoch_s + self.validation_s / eval_every, 1e-9)
        self.mark = Mark(now, done, trained_s)
        # without any time left, a last step is taken before the end is seen: it belongs to the plan so far
        return distributed.from_first(fitted(now, at, self.epochs, fit) if fit > 0 else plan)
