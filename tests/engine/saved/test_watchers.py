"""Rows that go elsewhere too: what fails or hangs there ends no run, and a resumed run goes on with the same one."""

import threading
from contextlib import contextmanager

import pytest

from fastdhm.cli import main
from fastdhm.config import TrainConfig
from fastdhm.engine.saved import watchers as module
from fastdhm.engine.saved.record import Log, read_log
from fastdhm.engine.saved.watchers import Watcher, watchers
from runs import command

EPOCH = {"epoch": 1.0, "mimic/B1->B2": 0.5, "val_error/B0": 12.5}


def test_rows_come_in_order_and_the_end_waits_for_them():
    rows, ended = [], []

    @contextmanager
    def begin():
        yield lambda *row: rows.append(row)
        ended.append(True)

    watcher = Watcher("one", begin, print)
    for step in range(100):
        watcher.write("step", step, {"loss": 1.0})
    watcher.close()
    assert rows == [("step", step, {"loss": 1.0}) for step in range(100)] and ended == [True]


@pytest.mark.parametrize("where", ["begin", "row", "end"])
def test_what_fails_is_said_once_and_the_log_goes_on(tmp_path, where):
    said = []

    @contextmanager
    def begin():
        def add(*row):
            if where == "row":
                raise SystemExit("the server\nis gone")

        if where == "begin":
            raise OSError("the server\nis gone")
        yield add
        if where == "end":
            raise OSError("the server\nis gone")

    log = Log(tmp_path, 0, 0, said.append, [Watcher("one", begin, said.append)])
    for step in range(3):
        log.write("step", step=step, epoch=0.5, loss=1.0)
    log.close()
    assert said == ["one cannot be used (the server is gone): the run goes on without it"]
    assert len(read_log(tmp_path)) == 3


def test_what_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "END_S", 0.05)
    said, released = [], threading.Event()

    @contextmanager
    def begin():
        yield lambda *row: released.wait(60)

    watcher = Watcher("one", begin, said.append)
    watcher.write("step", 1, {})
    watcher.close()
    released.set()
    assert said and "one did not take all rows" in said[0]


def test_what_is_not_installed_is_told_with_the_command_before_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "installed", lambda name: False)
    assert main(command(tmp_path / "run", "--log-to", "wandb,mlflow")) == 2
    error = capsys.readouterr().err
    assert error == "fastdhm: error: --log-to wandb,mlflow needs what is not installed: pip install wandb mlflow\n"
    assert not (tmp_path / "run").exists()


def test_another_name_is_refused(tmp_path, capsys):
    assert main(command(tmp_path / "run", "--log-to", "visdom")) == 2
    assert "log_to is" in capsys.readouterr().err


def log_twice(run_dir, name, said):
    """A run that is cut after a step, and resumed until its end."""
    run_dir.mkdir()
    config = TrainConfig(epochs=1, log_to=(name,))
    for kind, step, row in (("step", 5, {"epoch": 0.5, "loss": 2.0}), ("epoch", 10, EPOCH)):
        (watcher,) = watchers(config, run_dir, said.append)
        watcher.write(kind, step, row)
        watcher.close()


@pytest.mark.slow
def test_mlflow_has_one_run_of_a_resumed_one(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    said = []
    log_twice(tmp_path / "run", "mlflow", said)
    assert said == []
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("fastdhm").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.metrics == {
        "step/epoch": 0.5, "step/loss": 2.0, "epoch/epoch": 1.0, "epoch/mimic/B1_to_B2": 0.5, "epoch/val_error/B0": 12.5
    }  # fmt: skip
    assert client.get_metric_history(run.info.run_id, "step/loss")[0].step == 5
    assert run.data.params["epochs"] == "1" and run.data.params["method"] == "dhm"


@pytest.mark.slow
def test_wandb_has_one_run_of_a_resumed_one(tmp_path, monkeypatch, capfd):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = []
    log_twice(tmp_path / "run", "wandb", said)
    wandb.teardown()
    assert said == [] and capfd.readouterr().err == ""
    known = (tmp_path / "run/wandb.id").read_text()
    files = list((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))
    assert {file.name for file in files} == {f"run-{known}.wandb"}  # what `wandb sync` takes for one run


@pytest.mark.slow
def test_wandb_without_a_key_asks_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    said = []
    log_twice(tmp_path / "run", "wandb", said)
    assert said and "call `wandb login`, or set WANDB_MODE=offline" in said[0]
