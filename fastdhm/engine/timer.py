"""Wall-clock of a run: its training time over all its processes, throughput, and when a checkpoint is due."""

import time


class Timer:
    """Starts with the first step."""

    def __init__(self, step: int):
        self.last_save = time.monotonic()
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin an interval after ``step``; what went before (a validation, say) is not training time."""
        self.step, self.time = step, time.monotonic()

    def rate(self, images_per_step: int, step: int) -> float:
        """Images per second since the interval began; begins the next."""
        before, since = self.step, self.time
        self.restart(step)
        return images_per_step * (step - before) / (self.time - since)

    def minutes_since_save(self) -> float:
        """Minutes since the last checkpoint."""
        return (time.monotonic() - self.last_save) / 60

    def saved(self) -> None:
        """Note that a checkpoint was written."""
        self.last_save = time.monotonic()


class Stopwatch:
    """Seconds that a run has trained, over every process that worked on it; what lies between two does not count."""

    def __init__(self) -> None:
        self.before, self.since = 0.0, None

    @property
    def seconds(self) -> float:
        """The time so far; the device may be behind by the steps that it has not finished."""
        return self.before + (time.monotonic() - self.since if self.since is not None else 0.0)

    def start(self) -> None:
        """Go on; nothing changes if it runs already."""
        self.before, self.since = self.seconds, time.monotonic()

    def stop(self) -> None:
        """Stand still."""
        self.before, self.since = self.seconds, None
