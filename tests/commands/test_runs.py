"""fastdhm runs: states and errors from the files of runs, newest first."""

import json
import os
import subprocess
import sys

import pytest

from fastdhm.cli import main
from fastdhm.commands.runs import age
from fastdhm.config import TrainConfig
from fastdhm.engine.saved.checkpoint import write_config
from fastdhm.engine.saved.names import CURVES, LOG, NETWORK
from fastdhm.system.folders import held

EPOCH = {"kind": "epoch", "step": 8, "epoch": 2.0, "val_error/B0": 12.5, "val_side": 32}


def make_run(folder, *rows, changed, written=(), **config):
    folder.mkdir(parents=True)
    write_config(folder, TrainConfig(epochs=2, run_dir=str(folder), **config))
    for name in written:
        (folder / name).touch()
    (folder / LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("config.yaml", LOG):
        os.utime(folder / name, (changed, changed))


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path / "done", EPOCH, changed=3000, written=(NETWORK, CURVES))
    make_run(tmp_path / "young", {"kind": "step", "step": 2, "epoch": 0.5}, changed=4000)
    make_run(tmp_path / "comparison/runs/dhm-seed0", changed=2000, written=("failed.json",))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.yaml").write_text("epochs: [")
    (tmp_path / "broken" / LOG).touch()
    os.utime(tmp_path / "broken/config.yaml", (1000, 1000))
    os.utime(tmp_path / "broken" / LOG, (1000, 1000))
    return tmp_path


def listed(capsys, folder):
    assert main(["runs", str(folder), "--json"]) == 0
    return {os.path.relpath(row["run"], folder): row for row in json.loads(capsys.readouterr().out)}


def test_states_errors_and_order(runs, capsys):
    found = listed(capsys, runs)
    assert [(name, row["state"], row["epoch"], row["error"]) for name, row in found.items()] == [
        ("young", "stopped", 0.5, None),
        ("done", "finished", 2.0, 12.5),
        ("comparison/runs/dhm-seed0", "failed", 0.0, None),
        ("broken", "unreadable", 0.0, None),
    ]


@pytest.mark.parametrize(("keep", "error"), [("last", 12.5), ("best", 10.0)])
def test_the_error_is_that_of_the_network_that_is_kept(tmp_path, capsys, keep, error):
    rows = [EPOCH | {"step": 4, "epoch": 1.0, "val_error/B0": 10.0}, EPOCH]
    make_run(tmp_path / "run", *rows, changed=1, written=(NETWORK, CURVES), keep=keep)
    assert listed(capsys, tmp_path)["run"]["error"] == error


def test_a_thousand_epochs_are_written_out(tmp_path, capsys):
    make_run(tmp_path / "run", EPOCH | {"epoch": 1000.0}, changed=1)
    assert main(["runs", str(tmp_path)]) == 0
    assert "1000 / 2" in capsys.readouterr().out


def test_a_run_at_work_is_running_whoever_asks(runs, capsys):
    with held(runs / "young", "a test", print):
        assert listed(capsys, runs)["young"]["state"] == "running"
        elsewhere = [sys.executable, "-m", "fastdhm", "runs", str(runs), "--json"]
        told = subprocess.run(elsewhere, capture_output=True, text=True, check=True).stdout
        assert json.loads(told)[0]["state"] == "running"
    assert listed(capsys, runs)["young"]["state"] == "stopped"


def test_the_table_and_what_is_refused(runs, capsys):
    assert main(["runs", str(runs)]) == 0
    assert "12.50" in capsys.readouterr().out
    assert main(["runs", str(runs / "nowhere")]) == 2
    assert "is no folder: name one that holds runs" in capsys.readouterr().err
    (runs / "empty").mkdir()
    assert main(["runs", str(runs / "empty")]) == 2
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "told"), [(-1, "0 s"), (59, "59 s"), (3599, "59 min"), (7200, "2 h"), (1e6, "11 d")]
)
def test_age(seconds, told):
    assert age(seconds) == told
