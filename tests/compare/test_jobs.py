"""The runs of a comparison as work: which are meant, and how long they take side by side."""

import dataclasses

import pytest

from fastdhm.compare.arms import split_methods
from fastdhm.compare.jobs import chosen, find_jobs, split_names, time_left
from fastdhm.compare.plan import compare_methods
from fastdhm.errors import UserError


@pytest.fixture
def jobs(tmp_path):
    values = {"dataset": "synthetic:40", "epochs": 4}
    return find_jobs(compare_methods(split_methods("baseline,dhm"), (0, 1), values), tmp_path)


def in_state(job, **values):
    return dataclasses.replace(job, state=dataclasses.replace(job.state, **values))


def test_names_choose_runs_in_their_order(jobs):
    assert [job.name for job in chosen(jobs, split_names("dhm-seed1, baseline-seed0"))] == [
        "dhm-seed1",
        "baseline-seed0",
    ]
    assert chosen(jobs, ()) == jobs
    with pytest.raises(UserError, match="unknown run 'dhm-seed7'"):
        chosen(jobs, ("dhm-seed7",))
    with pytest.raises(UserError, match="only is empty"):
        split_names(" , ")


def test_runs_side_by_side_take_as_long_as_the_fullest_place(jobs):
    row = {"kind": "epoch", "epoch": 4.0, "step": 1, "train_seconds": 600.0}
    done = in_state(jobs[0], status="finished", rows=(row,), epochs=4.0)
    half = in_state(jobs[1], status="begun", epochs=2.0)
    assert time_left([done, half, *jobs[2:]]) == "very roughly 25 min"
    assert time_left([done, half, *jobs[2:]], 2) == "very roughly 15 min"
    assert time_left([done, half, *jobs[2:]], 3, {"dhm": 1200.0}) == "about 20 min"
    assert time_left(jobs, 2) is None
