"""What a person is told at the end of a run."""

from types import SimpleNamespace

import pytest

from fastdhm import models
from fastdhm.config import TrainConfig
from fastdhm.engine import report
from fastdhm.engine.report import print_report, telling_how_to_go_on
from fastdhm.engine.saved.checkpoint import Position
from fastdhm.errors import UserError
from fastdhm.system.console import Console


def test_the_last_table_says_that_the_best_epoch_flatters(capsys):
    rows = [
        {"kind": "epoch", "epoch": n, "step": n, "val_side": 32, "val_error/B0": error, "val_top5_error/B0": 1.0}
        for n, error in ((1, 20.0), (2, 30.0))
    ]
    print_report(Console(), rows, TrainConfig(dataset="folder:cats", keep="best"), ("B0",), "the process")
    text = capsys.readouterr().out
    assert "validation error after 2 epochs, on val of cats" in text and "test error" not in text
    assert "best epoch is chosen on these images" in text and "the network kept is of it" in text


def test_the_last_table_says_what_each_branch_costs(capsys):
    row = {"kind": "epoch", "epoch": 1, "step": 1, "val_side": 32, "val_error/B0": 3.0, "val_error/B2": 2.0}
    print_report(Console(width=120), [row], TrainConfig(arch="resnet20"), ("B0", "B2"), "the process", False, 10)
    text = capsys.readouterr().out
    for cost in models.costs_alone("resnet20", 10, 32, ("B0", "B2")).values():
        assert all(cell in text for cell in cost.cells())


def test_a_network_whose_costs_are_not_known_has_its_errors(capsys):
    """The table ends a run: what it lacks must not end it with an error."""
    row = {"kind": "epoch", "epoch": 1, "step": 1, "val_side": 32, "val_error/B0": 3.0}
    print_report(Console(width=120), [row], TrainConfig(arch="resnet21"), ("B0",), "the process", False, 10)
    assert "3.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("step", "between_steps", "error", "told"),
    [
        pytest.param(0, False, UserError, False, id="its-settings"),
        pytest.param(7, False, UserError, True, id="a-later-step"),
        pytest.param(0, True, UserError, True, id="its-data"),
        pytest.param(0, False, OSError, True, id="the-machine"),
    ],
)
def test_a_run_whose_first_step_its_settings_do_not_allow_is_not_to_be_gone_on_with(
    monkeypatch, tmp_path, capsys, step, between_steps, error, told
):
    monkeypatch.setattr(report, "_saved_step", lambda last: step)
    run = SimpleNamespace(dir=tmp_path, at=Position(step=step), between_steps=between_steps)
    with pytest.raises(error), telling_how_to_go_on(run, Console()):
        raise error("no")
    assert ("--resume" in capsys.readouterr().out) is told
