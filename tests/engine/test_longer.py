"""Runs that go on for another number of epochs: where they may, what they are then, and what else to do."""

import dataclasses

import pytest
import torch

from fastdhm.cli import main
from fastdhm.config import TrainConfig
from fastdhm.engine.longer import first_change
from fastdhm.engine.saved.checkpoint import load_checkpoint, read_config
from runs import assert_same_state, command, rows_without_times

STEP = ("--method", "baseline", "--schedule", "step", "--milestones", "1", "--warmup-epochs", "0", "--max-steps")
BASE = TrainConfig(epochs=10, milestones=(4.0,), schedule="step")


@pytest.mark.parametrize(
    ("config", "epochs", "change"),
    [
        (BASE, 10, ""),
        (dataclasses.replace(BASE, schedule="cosine"), 1, "learning rate"),
        (dataclasses.replace(BASE, schedule="cosine", warmup_epochs=2.0), 2, ""),
        (dataclasses.replace(BASE, schedule="linear", warmup_epochs=2.0), 3, "learning rate"),
        (dataclasses.replace(BASE, progressive=0.5), 3, ""),
        (dataclasses.replace(BASE, progressive=0.5), 4, "size of the images"),
        (dataclasses.replace(BASE, mixup=0.2, mix_off_epochs=3), 7, ""),
        (dataclasses.replace(BASE, mixup=0.2, mix_off_epochs=3), 8, "mix of the images"),
        (dataclasses.replace(BASE, schedule="cosine"), 0, ""),
    ],
    ids=["step", "cosine", "warm-up", "linear", "small", "grown", "mixed", "unmixed", "not begun"],
)  # fmt: skip
def test_a_longer_run_keeps_its_past(config, epochs, change):
    assert first_change(config, dataclasses.replace(config, epochs=20), epochs) == change
    assert first_change(config, config, 10) == ""


def test_a_finished_run_that_goes_on_is_the_longer_run_bit_for_bit(tmp_path, capsys):
    flags = (*STEP, "30", "--log-every", "5")
    assert main(command(tmp_path / "long", *flags, "--epochs", "2")) == 0
    assert main(command(tmp_path / "run", *flags, "--epochs", "1")) == 0
    assert main(["train", "--resume", str(tmp_path / "run"), "--epochs", "2", "--max-steps", "15"]) == 0
    assert read_config(tmp_path / "run").epochs == 2, "it is said once"
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert_same_state(tmp_path / "long" / "last.pt", tmp_path / "run" / "last.pt", same_best=False)
    assert rows_without_times(tmp_path / "long")[-1] == rows_without_times(tmp_path / "run")[-1]
    assert main(["train", "--resume", str(tmp_path / "run"), "--epochs", "1"]) == 2
    assert "epochs is 1, and" in (told := capsys.readouterr().err) and "has begun 2: must be 2 or more" in told


def test_a_schedule_to_an_end_says_why_not_and_what_to_do_which_works(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(command(run, "--epochs", "1", "--max-steps", "8", "--schedule", "linear")) == 0
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--epochs", "3"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "its steps so far would have had another learning rate" in told
    assert f"fastdhm train --weights {run} --epochs 2" in told
    assert main(command(tmp_path / "new", "--weights", str(run), "--epochs", "1", "--max-steps", "1")) == 0
    assert "its 'model', names that begin with 'trunk.', its B1, its B2" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_an_average_of_the_weights_is_what_a_run_begins_from(tmp_path):
    assert main(command(tmp_path / "run", "--epochs", "1", "--max-steps", "2", "--ema", "0.9")) == 0
    average = load_checkpoint(tmp_path / "run" / "last.pt")["average"]
    for number, weights in enumerate([tmp_path / "run", tmp_path / "run" / "last.pt"]):
        new = tmp_path / f"new{number}"
        flags = ("--epochs", "1", "--max-steps", "1", "--lr", "1e-30", "--weight-decay", "0")
        assert main(command(new, "--weights", str(weights), *flags)) == 0
        state = load_checkpoint(new / "last.pt")["model"]
        assert all(torch.equal(state[name], average[name]) for name in state if name.endswith("conv1.weight"))


def test_a_folder_that_is_no_run_is_said_at_once(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(command(tmp_path / "new", "--weights", str(tmp_path / "empty"))) == 2
    assert "is not a run of fastdhm" in capsys.readouterr().err
    assert main(command(tmp_path / "new", "--weights", str(tmp_path / "gone"))) == 2
    assert "no such file or run; give one" in capsys.readouterr().err
