"""What a person watching a run reads."""

import io

import pytest
from rich.console import Console

from fastdhm.engine import display
from fastdhm.engine.display import TrainingDisplay


@pytest.mark.parametrize(("share", "said"), [(0.0, ""), (0.02, ""), (0.034, "data wait 3%"), (0.61, "data wait 61%")])
def test_a_wait_for_data_is_shown_from_a_few_percent_on(monkeypatch, share, said):
    monkeypatch.setattr(display, "PLAIN_LINE_SECONDS", -1)
    text = io.StringIO()
    shown = TrainingDisplay(Console(file=text, width=200), 100, 0, 32, "test")
    shown.show(10, 0, {"loss": 1.5, "train_error/B0": 25.0, "images_per_s": 321.4, "data_wait": share})
    assert "step 10/100  loss 1.500 acc B0 75.0 321 img/s" in text.getvalue()
    assert said in text.getvalue()
    assert ("data wait" in text.getvalue()) == bool(said)
