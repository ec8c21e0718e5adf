"""What a person watching a run reads."""

import io
from functools import partial

import pytest

from fastdhm.engine import display
from fastdhm.engine.display import TrainingDisplay
from fastdhm.engine.optim.schedule import full_size_steps
from fastdhm.system.console import Console


@pytest.mark.parametrize(("share", "said"), [(0.0, ""), (0.02, ""), (0.034, "data wait 3%"), (0.61, "data wait 61%")])
def test_a_wait_for_data_is_shown_from_a_few_percent_on(monkeypatch, share, said):
    monkeypatch.setattr(display, "PLAIN_LINE_SECONDS", -1)
    text = io.StringIO()
    shown = TrainingDisplay(Console(file=text, width=200), 100, 0, 32, "validation")
    shown.show(10, 0, {"loss": 1.5, "train_error/B0": 25.0, "images_per_s": 321.4, "data_wait": share})
    assert "step 10/100  loss 1.500 acc B0 75.0 321 img/s" in text.getvalue()
    assert said in text.getvalue()
    assert ("data wait" in text.getvalue()) == bool(said)


@pytest.mark.parametrize(("epochs", "said"), [(20, "2/20 "), (1200, "2/1200 "), (5.3333, "2/5.33 ")])
def test_the_number_of_epochs_is_written_out(epochs, said):
    text = io.StringIO()
    shown = TrainingDisplay(Console(file=text, width=200), 100, 0, 32, "validation")
    shown.show_epoch(1, epochs, {"train_error/B0": 3.0, "val_error/B0": 4.0, "val_side": 32})
    assert f"epoch {said}" in text.getvalue()


@pytest.fixture
def clock(monkeypatch):
    """The clock that a progress bar reads; the test moves it."""
    now = [0.0]
    progress = partial(display.Progress, get_time=lambda: now[0])
    monkeypatch.setattr(display, "Progress", progress)
    monkeypatch.setattr(display, "PLAIN_LINE_SECONDS", -1)
    return now


def test_the_time_left_counts_that_later_images_are_larger(clock):
    """A quarter of a second a step on images of half the sides: at the full size a second is to be expected."""
    text = io.StringIO()
    work = partial(full_size_steps, run_steps=1000, side=32, progressive=0.5)
    shown = TrainingDisplay(Console(file=text, width=200), 1000, 0, 32, "validation", work)
    scalars = {"loss": 1.5, "train_error/B0": 25.0, "images_per_s": 321.4, "data_wait": 0.0}
    for step in range(1, 201):
        clock[0] += 0.25
        shown.advance(step, 0, 10)
    shown.show(200, 0, scalars)
    left = 100 * 0.25 + 200 * 9 / 16 + 500
    assert f"{left / 60:.1f} min left" in text.getvalue()  # and not 800 steps of a quarter of a second
