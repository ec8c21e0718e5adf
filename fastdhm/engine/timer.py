"""Wall-clock of a run: its training time over all its processes, start-up, throughput, the wait for data, and when a
checkpoint is due."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastdhm.data.loaders.ahead import copied_ahead
from fastdhm.data.loaders.loader import Batch, Loader


def process_seconds() -> float:
    """How long this process has been there, its imports too, to a hundredth."""
    ticks = int(Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()[19])  # since boot: see proc(5)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Timer:
    """Starts with the first step."""

    def __init__(self, step: int):
        self.first_step, self.last_save = step + 1, time.monotonic()
        self.waited = 0.0  # seconds, from here on
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin an epoch, and an interval, after ``step``; what went before (a validation, say) is not training."""
        self.of_epoch = self.of_interval = (step, time.monotonic(), self.waited)

    @contextmanager
    def feed(self, loader: Loader, epoch: int, start_batch: int, device: torch.device) -> Iterator[Iterator[Batch]]:
        """The batches of ``loader.epoch``, on ``device``; what each is waited for counts, the first's start-up too."""
        asked = time.monotonic()
        with loader.epoch(epoch, start_batch=start_batch) as batches:
            self.waited += time.monotonic() - asked
            yield self._waits(copied_ahead(batches, device))

    def _waits(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def interval(self, images_per_step: int, step: int) -> dict[str, float]:
        """``images_per_s``, ``data_wait`` (the share of the time, in [0, 1], in which the loop waited for a batch) and
        ``process_seconds`` of the interval that ends here; begins the next."""
        speed = self._since(self.of_interval, images_per_step, step)
        self.of_interval = (step, time.monotonic(), self.waited)
        return speed | {"process_seconds": process_seconds()}

    def epoch(self, images_per_step: int, step: int) -> dict[str, float]:
        """``images_per_s`` and ``data_wait`` of the steps that this process made of the epoch."""
        return self._since(self.of_epoch, images_per_step, step)

    def _since(self, begun: tuple[int, float, float], images_per_step: int, step: int) -> dict[str, float]:
        before, since, waited = begun
        seconds = max(time.monotonic() - since, 1e-9)  # the clock is no finer
        rate = images_per_step * (step - before) / seconds
        return {"images_per_s": rate, "data_wait": min(1.0, (self.waited - waited) / seconds)}

    def minutes_since_save(self) -> float:
        """Minutes since the last checkpoint."""
        return (time.monotonic() - self.last_save) / 60

    def saved(self) -> None:
        """Note that a checkpoint was written."""
        self.last_save = time.monotonic()


class Stopwatch:
    """Seconds that a run has trained, over every process that worked on it; what lies between two does not count."""

    def __init__(self) -> None:
        self.before = 0.0
        self.since: float | None = None

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
