"""Wall-clock of a run: throughput between log points, and when the next checkpoint is due."""

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
