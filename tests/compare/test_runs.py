"""The state of a run of a comparison, from what lies in its folder."""

import json

import pytest
from torch import nn

from fastdhm.compare.arms import Arm
from fastdhm.compare.runs import FAILURE, read_run
from fastdhm.config import TrainConfig
from fastdhm.engine.saved.checkpoint import save_network, write_config
from fastdhm.engine.saved.names import CURVES, NETWORK

CONFIG = TrainConfig(dataset="reid-synthetic", epochs=2, seed=1)
ARM = Arm(name="dhm", label="dhm", config=CONFIG)
LAST = {"kind": "epoch", "epoch": 2.0, "step": 20, "val_side": 32, "val_error/B0": 20.0, "train_error/B0": 30.0}
RANKED = {"kind": "reid", "epoch": 2.0, "step": 20, "map_percent": 70.0, "rank1_percent": 90.0, "rank5_percent": 95.0}


@pytest.fixture
def folder(tmp_path):
    write_config(tmp_path, CONFIG)
    data = {"train": {"count": 80, "digest": "x"}}
    save_network(tmp_path / NETWORK, nn.Linear(2, 2), CONFIG, ("a", "b"), data)
    (tmp_path / CURVES).touch()
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (LAST, RANKED)), "utf-8")
    return tmp_path


def state(folder):
    return read_run(folder, ARM, 1, CONFIG)


def test_a_finished_run_knows_its_images_and_its_ranking(folder):
    found = state(folder)
    assert (found.status, found.data["train"]["count"]) == ("finished", 80)
    assert found.scores("last")["B0"]["map_percent"] == 70.0


def test_a_run_that_was_not_ranked_is_not_finished(folder):
    (folder / "log.jsonl").write_text(json.dumps(LAST) + "\n", "utf-8")
    assert state(folder).status == "begun"


def test_a_network_that_was_cut_short_is_owed(folder):
    (folder / NETWORK).write_bytes(b"x")
    assert state(folder).status == "begun"


def test_a_failure_that_cannot_be_read_is_still_one(folder):
    (folder / FAILURE).write_text("{", "utf-8")
    assert (state(folder).status, state(folder).failure) == ("failed", "its failed.json cannot be read")
