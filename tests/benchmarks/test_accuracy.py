"""``fastdhm bench accuracy``: only training counts, and a run that does not get there has no time."""

import csv
import json

import numpy as np
import pytest
import torch

from fastdhm.benchmarks import accuracy
from fastdhm.benchmarks.reference.contender import Engine
from fastdhm.cli import main
from fastdhm.config import TrainConfig
from fastdhm.engine import step
from fastdhm.engine.settle import settle

QUICK = ["bench", "accuracy", "--quick", "--device", "cpu", "--json"]


def test_smoke_run(tmp_path, capsys):
    assert main([*QUICK, "--out", str(tmp_path)]) in (0, 1)  # so short a run may or may not get there
    record = json.loads(capsys.readouterr().out)
    assert list(record["comparisons"][0]["peers"]) == ["fastdhm", "preset fast", "reference"]
    for (way,) in record["runs"].values():
        assert way["steps"][0] == 4
        assert way["seconds"] == sorted(way["seconds"])
    with open(tmp_path / "accuracy_curves.csv", newline="") as file:
        assert {row["run"] for row in csv.DictReader(file)} == {"fastdhm", "preset fast", "reference"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "accuracy.json", "accuracy.csv", "accuracy_curves.csv", "accuracy.png",
    }  # fmt: skip


def test_a_run_that_does_not_get_there_has_no_time(tmp_path, capsys):
    flags = ["--target", "0.01", "--epochs", "1", "--preset", "false", "--dataset", "synthetic:128"]
    assert main([*QUICK, *flags, "--out", str(tmp_path)]) == 1
    record = json.loads(capsys.readouterr().out)
    assert "1 of 1 runs ended at" in record["comparisons"][0]["peers"]["fastdhm"]["failure"]
    assert record["speedup"] is None


def test_a_wrong_engine_is_not_timed(tmp_path, capsys, monkeypatch):
    mimic_loss = step.mimic_loss

    def scaled(*args, **settings):
        loss, terms_AA = mimic_loss(*args, **settings)
        return 3 * loss, terms_AA

    monkeypatch.setattr(step, "mimic_loss", scaled)
    assert main([*QUICK, "--precision", "float32", "--out", str(tmp_path)]) == 1
    record = json.loads(capsys.readouterr().out)
    assert "must be at most" in record["comparisons"][0]["peers"]["fastdhm"]["failure"]
    assert record["runs"] == {"fastdhm": [], "preset fast": [], "reference": []}


def test_a_benchmark_that_is_cut_leaves_the_seeds_that_it_has(tmp_path, capsys, monkeypatch):
    def to_target(network, steps, config, *args):
        if config.seed == 2:
            raise KeyboardInterrupt
        return accuracy.Way([4], [1.0 + config.seed], [50.0])

    monkeypatch.setattr(accuracy, "to_target", to_target)
    assert main([*QUICK, "--seeds", "3", "--out", str(tmp_path)]) == 130
    record = json.loads((tmp_path / "accuracy.json").read_text())
    assert {name: len(runs) for name, runs in record["runs"].items()} == {
        "fastdhm": 2, "preset fast": 2, "reference": 2,
    }  # fmt: skip
    assert record["fastdhm_s"] == 1.5
    assert len((tmp_path / "accuracy_curves.csv").read_text().splitlines()) == 1 + 3 * 2


def test_the_clock_stands_still_for_evaluation(monkeypatch):
    now = [0.0]

    def steps():
        for _ in range(7):
            now[0] += 1
            yield

    class Errors:
        top1_M = (50.0,)

    def evaluate(*args):
        now[0] += 100
        return Errors

    class Data:
        val = None

    monkeypatch.setattr(accuracy, "evaluate", evaluate)
    config = TrainConfig(device="cpu")
    way = accuracy.to_target(torch.nn.Identity(), steps(), config, Data, 10.0, 3, clock=lambda: now[0])
    assert (way.steps, way.seconds) == ([3, 6, 7], [3, 6, 7])
    way = accuracy.to_target(torch.nn.Identity(), steps(), config, Data, 60.0, 3, clock=lambda: now[0])
    assert (way.steps, way.seconds) == ([3], [3])


def test_both_start_from_the_same_weights():
    config = TrainConfig(dataset="synthetic:64", arch="resnet8", seed=5, device="cpu", batch_size=16, workers=0)

    class Data:
        classes, identity, train, target_N = tuple("abcdefghij"), {}, range(3), np.arange(30) % 10

    engine, _ = accuracy.start_engine(settle(config), Data)
    trunk, _ = accuracy.start_reference(settle(config), Data)
    assert isinstance(Engine(settle(config), 10).run.model, type(engine))
    for name, weight in trunk.state_dict().items():
        assert torch.equal(weight, engine.trunk.state_dict()[name])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--target 0", "--target is 0.0: must be an error in percent"),
        ("--seeds 0", "--seeds is 0: must be at least 1"),
        ("--eval-steps 0", "--eval-steps is 0: must be at least 1"),
    ],
    ids=lambda value: value if value.startswith("--") else "",
)
def test_a_mistake_is_one_line(flags, message, tmp_path, capsys):
    assert main(["bench", "accuracy", *flags.split(), "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
