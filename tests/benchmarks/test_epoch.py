"""``fastdhm bench epoch``: epochs are whole, waits are counted, losses are held together."""

import json
import time

import pytest
import torch

from fastdhm.benchmarks.agreement import Agreement, moving_mean
from fastdhm.benchmarks.reference.contender import Waited
from fastdhm.cli import main
from fastdhm.engine import step

QUICK = ["bench", "epoch", "--quick", "--device", "cpu", "--json"]


def test_smoke_run(tmp_path, capsys):
    flags = ["--precision", "bfloat16", "--agreement", "6", "--out", str(tmp_path)]
    assert main([*QUICK, *flags]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["speedup"] == pytest.approx(record["fastdhm_images_per_s"] / record["reference_images_per_s"])
    assert 0 <= record["fastdhm_data_wait"] < 1
    assert {mark["name"] for mark in record["marks"]} == {
        "reference over fastdhm", "fastdhm", "fastdhm waits for data", "reference", "reference waits for data",
    }  # fmt: skip
    assert record["agreement"]["gap"].keys() == {"plain", "fastdhm", "fastdhm float32"}
    assert record["agreement"]["gap"]["fastdhm float32"] < 0.02
    header, *rows = (tmp_path / "agreement.csv").read_text().splitlines()
    assert header == "step,reference,plain,fastdhm,fastdhm float32"
    assert len(rows) == 6
    assert {path.name for path in tmp_path.iterdir()} == {
        "epoch.json", "epoch.csv", "epoch.png", "agreement.csv", "agreement.png",
    }  # fmt: skip


def test_a_wrong_engine_gets_no_time_and_status_1(tmp_path, capsys, monkeypatch):
    mimic_loss = step.mimic_loss

    def scaled(*args, **settings):
        loss, terms_AA = mimic_loss(*args, **settings)
        return 2 * loss, terms_AA

    monkeypatch.setattr(step, "mimic_loss", scaled)
    assert main([*QUICK, "--precision", "float32", "--max-steps", "2", "--out", str(tmp_path)]) == 1
    record = json.loads(capsys.readouterr().out)
    assert "must be at most" in record["comparisons"][0]["peers"]["fastdhm"]["failure"]
    assert record["fastdhm_images_per_s"] is None
    assert record["speedup"] is None
    assert record["reference_images_per_s"] > 0


def test_waits_are_counted():
    def slow():
        for i in range(3):
            time.sleep(0.02)
            yield i

    waited = Waited(slow())
    assert list(waited) == [0, 1, 2]
    assert waited.seconds >= 0.06


def test_curves_that_drift_apart_are_found():
    steps = torch.arange(200.0)
    noise = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    curve = 3 * (-steps / 100).exp() + 1
    losses = {"reference": curve + 0.1 * noise[0], "plain": curve + 0.1 * noise[1], "fastdhm": curve + 0.1 * noise[2]}
    losses |= {"fastdhm float32": 1.1 * curve}
    found = Agreement({name: values.tolist() for name, values in losses.items()})
    assert found.failure("fastdhm") is None
    assert "away from the reference's" in found.failure("fastdhm float32")
    assert list(found.comparison().failures) == ["losses of fastdhm float32"]
    broken = Agreement(found.losses | {"fastdhm": [float("nan")] * 200})
    assert broken.failure("fastdhm") is not None


def test_moving_mean():
    assert moving_mean([1.0, 2.0, 3.0]).tolist() == [1, 2, 3]
    assert moving_mean(list(range(40)))[0].item() == 0.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--agreement 0", "--agreement is 0: must be at least 1"),
        ("--max-steps 0", "--max-steps is 0: must be at least 1"),
        ("--rounds 0", "--rounds is 0: must be at least 1"),
        ("--workers -1", "workers is -1: must be 0 or more"),
        ("--precision int8", "unknown value of --precision 'int8'"),
        ("--dataset reid-synthetic", "the reference classifies images"),
    ],
    ids=lambda value: value if value.startswith("--") else "",
)
def test_a_mistake_is_one_line(flags, message, tmp_path, capsys):
    assert main(["bench", "epoch", *flags.split(), "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_unknown_data(tmp_path, capsys):
    assert main(["bench", "epoch", "--dataset", "cifar11", "--out", str(tmp_path)]) == 2
    assert "unknown data set 'cifar11'" in capsys.readouterr().err
