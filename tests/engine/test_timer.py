"""What counts as training time."""

import pytest

from fastdhm.engine import timer
from fastdhm.engine.timer import Stopwatch


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
