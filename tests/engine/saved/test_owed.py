"""What a run that is killed between two of its files still owes."""

import pytest

from fastdhm.config import TrainConfig
from fastdhm.engine.saved.names import CURVES, NETWORK
from fastdhm.engine.saved.owed import LAST_EPOCH, RANKING, owed

RUN = TrainConfig(dataset="synthetic", epochs=3)


def epoch(number, step):
    return {"kind": "epoch", "epoch": number, "step": step, "val_side": 32}


@pytest.fixture
def run_dir(tmp_path):
    for name in (NETWORK, CURVES, "last.pt"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_whole_run_owes_nothing(run_dir):
    assert not owed(run_dir, RUN, [epoch(3.0, 30)])


def test_without_its_last_epoch_it_owes_all(run_dir):
    for rows in ([], [epoch(2.0, 20)], [{**epoch(3.0, 30), "kind": "step"}]):
        assert owed(run_dir, RUN, rows) == [LAST_EPOCH]


def test_each_file_is_owed_while_it_is_not_there(run_dir):
    rows = [epoch(3.0, 30)]
    (run_dir / CURVES).unlink()
    assert owed(run_dir, RUN, rows) == [CURVES]
    (run_dir / NETWORK).unlink()
    assert owed(run_dir, RUN, rows) == [NETWORK, CURVES]


def test_curves_that_nothing_can_draw_are_not_owed(run_dir):
    (run_dir / CURVES).unlink()
    (run_dir / "last.pt").unlink()
    assert not owed(run_dir, RUN, [epoch(3.0, 30)])


def test_people_have_to_be_ranked_after_the_last_step(run_dir):
    config = TrainConfig(dataset="reid-synthetic", epochs=3)
    rows = [epoch(3.0, 30)]
    assert owed(run_dir, config, rows) == [RANKING]
    assert owed(run_dir, config, [*rows, {"kind": "reid", "step": 20, "epoch": 2}]) == [RANKING]
    assert not owed(run_dir, config, [*rows, {"kind": "reid", "step": 30, "epoch": 3}])
