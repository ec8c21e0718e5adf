"""Runs that end by themselves before their epochs: planned to a time, or without patience."""

from itertools import pairwise

import pytest

from fastdhm.cli import main
from fastdhm.engine.hours import Hours, fitted, time_in_schedule
from fastdhm.engine.optim.schedule import full_size_steps
from fastdhm.engine.saved.checkpoint import load_checkpoint, read_config
from fastdhm.engine.saved.owed import owed
from fastdhm.engine.saved.record import read_log
from runs import assert_same_state, command, rows_without_times


def test_where_all_epochs_fit_there_is_no_plan():
    assert fitted(3.0, 3.0, 10, 7.0) is None
    assert time_in_schedule(3.5, None, 10) == 3.5


def test_a_plan_ends_the_schedule_with_a_whole_epoch():
    plan = fitted(3.0, 3.0, 10, 4.6)
    assert plan == (3.0, 3.0, 7)
    assert [time_in_schedule(now, plan, 10) for now in (3, 5, 7, 8)] == [3, 6.5, 10, 10]
    assert fitted(0.5, 0.5, 10, 0.2) == pytest.approx((0.5, 0.5, 0.7)), "no whole one fits"
    assert fitted(5.0, 6.5, 10, 9.0) == (5.0, 6.5, 8), "no slower than the schedule itself"


@pytest.mark.parametrize("progressive", [0.0, 0.75])
def test_the_speed_so_far_says_how_many_epochs_fit(progressive):
    """Small images cost less: of a run that has seen those alone, the rest is slower."""

    def work(at):
        return full_size_steps(at, 20, 32, progressive)

    hours = Hours(1.0, 20, work)
    hours.measure_from(0.0, None, 0.0)
    hours.clock.before, hours.clock.since, hours.validation_s = 600.0, None, 60.0
    plan = hours.plan(1.0, None, 480.0, eval_every=2)
    cost = 480 / work(1) * (work(20) - work(1)) / 19
    expected = (3600 - 600 - 60) / (cost + 30)
    assert plan == (1.0, 1.0, int(1 + expected))
    assert hours.plan(1.0, plan, 480.0, eval_every=2) == plan, "nothing was trained since"


def test_the_first_step_says_nothing_of_the_speed():
    """It took three minutes, as where processes compile it; the others take a second."""
    hours = Hours(0.5, 10, float)
    assert hours.plan(0.001, None, 180.0, eval_every=1) is None
    hours.measure_from(0.001, None, 180.0)
    hours.clock.before = 200.0
    assert hours.plan(0.001, None, 180.0, eval_every=1) is None
    assert hours.plan(0.011, None, 190.0, eval_every=1) == (0.011, 0.011, 1)


def test_without_time_left_the_schedule_does_not_jump_back():
    """Between two epochs, when the last validation took all the time that was left: one more step is taken."""
    hours, plan = Hours(1.0, 20, float), (1.0, 1.0, 8.0)
    hours.measure_from(5.0, plan, 0.0)
    hours.clock.before, hours.clock.since = 3600.0, None
    assert hours.plan(6.0, plan, 480.0, eval_every=1) == plan


def test_time_is_up_with_a_last_validation_to_come():
    hours = Hours(1.0, 20, float)
    hours.clock.before = 3500.0
    assert not hours.up()
    hours.validation_s = 200.0
    assert hours.up() and not Hours(None, 20, float).up()


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A run of 500 epochs in about a second and a half."""
    run_dir = tmp_path_factory.mktemp("planned") / "run"
    assert main(command(run_dir, "--epochs", "500", "--log-every", "1", "--hours", "0.0004")) == 0
    return run_dir


def test_a_planned_run_is_a_finished_one_however_fast_it_is(planned, capsys):
    config, rows = read_config(planned), read_log(planned)
    assert rows[-1]["ended"] == 1 and "val_error/B0" in rows[-1] and rows[-1]["epoch"] < 500
    assert not owed(planned, config, rows)
    assert main(["train", "--resume", str(planned)]) == 0
    assert "of 500 epochs, as hours is 0.0004" in capsys.readouterr().out
    assert read_log(planned)[-1]["step"] == rows[-1]["step"]


def test_hours_that_suffice_change_no_bit(tmp_path):
    for name, more in (("plain", ()), ("hours", ("--hours", "9"))):
        assert main(command(tmp_path / name, "--epochs", "1", "--log-every", "1", *more)) == 0
    assert_same_state(tmp_path / "plain" / "last.pt", tmp_path / "hours" / "last.pt")
    assert rows_without_times(tmp_path / "plain") == rows_without_times(tmp_path / "hours")


def test_patience_ends_a_run_and_a_resumed_one_at_the_same_epoch(tmp_path, capsys):
    flags = ("--epochs", "30", "--patience", "1", "--lr", "0.5", "--schedule", "constant")
    assert main(command(tmp_path / "run", *flags)) == 0
    rows = [row for row in read_log(tmp_path / "run") if row["kind"] == "epoch"]
    errors = [row["val_error/B0"] for row in rows]
    assert errors[-1] >= min(errors[:-1]) and all(b < a for a, b in pairwise(errors[:-1]))
    assert [row.get("ended") for row in rows] == [None] * (len(rows) - 1) + [1]
    assert f"ended after epoch {len(rows)}, as patience is 1" in capsys.readouterr().out
    assert not owed(tmp_path / "run", read_config(tmp_path / "run"), rows)
    assert main(command(tmp_path / "cut", *flags, "--max-steps", "7")) == 0
    assert main(["train", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_state(tmp_path / "run" / "last.pt", tmp_path / "cut" / "last.pt", same_best=False)
    at = load_checkpoint(tmp_path / "run" / "last.pt")["position"]
    assert at["best_epoch"] == at["epoch"] - 2
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert load_checkpoint(tmp_path / "run" / "last.pt")["position"] == at


@pytest.mark.parametrize(("flag", "value"), [("hours", "0"), ("patience", "0"), ("layer-decay", "0")])
def test_what_is_out_of_range_is_refused(tmp_path, capsys, flag, value):
    assert main(command(tmp_path / "run", f"--{flag}", value)) == 2
    assert f"{flag.replace('-', '_')} is 0" in capsys.readouterr().err
