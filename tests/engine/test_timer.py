"""What counts as training time, and what as waiting for data."""

import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from fastdhm.engine import timer
from fastdhm.engine.timer import Stopwatch, Timer, process_seconds


@pytest.fixture
def clock(monkeypatch):
    """A monotonic clock that the test moves: ``clock[0]`` is now, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(timer.time, "monotonic", lambda: now[0])
    return now


def test_a_stopwatch_counts_only_while_it_runs(clock):
    watch = Stopwatch()
    clock[0] += 5
    assert watch.seconds == 0
    watch.start()
    clock[0] += 3
    assert watch.seconds == 3
    watch.stop()
    clock[0] += 100
    watch.start()
    clock[0] += 1
    watch.start()
    clock[0] += 1
    assert watch.seconds == 5


def test_a_stopwatch_goes_on_from_what_a_checkpoint_says(clock):
    watch = Stopwatch()
    watch.before = 60.0
    watch.start()
    clock[0] += 2
    watch.stop()
    assert watch.seconds == 62


def test_the_wait_for_data_is_a_share_of_the_interval(clock):
    class Slow:
        @contextmanager
        def epoch(self, epoch, start_batch):
            clock[0] += 1  # starting workers, say
            yield self.batches(start_batch)

        def batches(self, start_batch):
            for batch in range(start_batch, 4):
                clock[0] += 2
                yield batch

    watch, seen = Timer(10), []
    with watch.feed(Slow(), 0, 1, torch.device("cpu")) as batches:
        for batch in batches:
            seen.append(batch)
            clock[0] += 8  # the step
            if batch == 2:
                first = watch.interval(16, 12)
    last = watch.interval(16, 13)
    assert seen == [1, 2, 3]
    assert (first["images_per_s"], first["data_wait"]) == (2 * 16 / 21, 5 / 21)
    assert (last["images_per_s"], last["data_wait"]) == (16 / 10, 2 / 10)
    assert watch.epoch(16, 13) == {"images_per_s": 3 * 16 / 31, "data_wait": 7 / 31}
    clock[0] += 100  # a validation
    watch.restart(13)
    clock[0] += 4
    assert watch.epoch(16, 15) == {"images_per_s": 2 * 16 / 4, "data_wait": 0}


def test_process_seconds_count_from_the_command(tmp_path):
    """Not from its first line, and not from before it was started."""
    program = (
        "import time; first = time.time(); from fastdhm.engine.timer import process_seconds; "
        "print(first, time.time(), process_seconds(), time.time())"
    )
    began = timer.time.time()
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, before, seconds, after = map(float, answer.stdout.split())
    assert before - first < seconds < after - began + 0.1
    assert process_seconds() > seconds
