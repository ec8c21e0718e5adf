"""``fastdhm bench step`` from end to end: right steps are timed, wrong ones are not."""

import csv
import json

import pytest
import torch

from fastdhm import models
from fastdhm.cli import main
from fastdhm.engine import step

QUICK = ["bench", "step", "--quick", "--rounds", "1", "--device", "cpu", "--json"]


def test_smoke_run(tmp_path, capsys):
    assert main([*QUICK, "--precision", "bfloat16", "--threads", "1", "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "step.json").read_text())
    peers = record["comparisons"][0]["peers"]
    assert list(peers) == ["fastdhm", "reference", "baseline", "autocast"]
    assert record["speedup"] == pytest.approx(record["reference_ms"] / record["fastdhm_ms"])
    assert record["settings"]["precision"] == "bfloat16"
    (step,) = record["steps"]
    macs = sum(cost.macs for cost in models.inventory("resnet8", 100, 16).branches.values())
    assert step["gflop"] == pytest.approx(8 * 3 * 2 * macs / 1e9)  # forward, and two gradients
    assert step["matmul_tflops"].keys() == {"float32", "bfloat16"}
    assert all(mib > 0 for mib in step["peak_mib"].values())
    assert step["profile_ms"].keys() == {"fastdhm", "reference"}
    assert {mark["name"] for mark in record["marks"]} == {
        "reference over fastdhm", "autocast over fastdhm", "fastdhm over baseline", "of the matrix peak",
    }  # fmt: skip
    with open(tmp_path / "step.csv", newline="") as file:
        assert [row["peer"] for row in csv.DictReader(file)] == list(peers)
    assert {path.name for path in tmp_path.iterdir()} == {"step.json", "step.csv", "step.png", "step_profile.png"}


def test_a_wrong_step_gets_no_time_and_status_1(tmp_path, capsys, monkeypatch):
    mimic_loss = step.mimic_loss

    def scaled(*args, **settings):
        loss, terms_AA = mimic_loss(*args, **settings)
        return 1.05 * loss, terms_AA

    monkeypatch.setattr(step, "mimic_loss", scaled)
    assert main([*QUICK, "--precision", "float32", "--out", str(tmp_path)]) == 1
    output = capsys.readouterr()
    record = json.loads(output.out)
    peers = record["comparisons"][0]["peers"]
    assert "median_ms" not in peers["fastdhm"]
    assert "must be at most" in peers["fastdhm"]["failure"]
    assert peers["reference"]["median_ms"] > 0
    assert record["speedup"] is None
    assert "fastdhm: WRONG, so not timed" in output.err


@pytest.mark.slow
def test_two_networks_of_a_method(tmp_path, capsys):
    flags = ["--arch", "resnet8", "--arch", "wrn-10-1", "--method", "baseline", "--precision", "float32"]
    assert main([*QUICK, *flags, "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [c["label"] for c in record["comparisons"]] == [
        "resnet8 baseline 16x16 batch 8", "wrn-10-1 baseline 16x16 batch 8",
    ]  # fmt: skip
    assert list(record["comparisons"][1]["peers"]) == ["fastdhm", "reference"]


@pytest.mark.slow
def test_a_compiled_step_comes_with_the_eager_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # the real one takes a minute
    flags = ["--compile", "on", "--method", "baseline", "--precision", "float32"]
    assert main([*QUICK, *flags, "--peers", "eager", "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert list(record["comparisons"][0]["peers"]) == ["fastdhm", "eager"]


@pytest.mark.gpu
def test_on_a_gpu(tmp_path, capsys):
    assert main(["bench", "step", "--quick", "--device", "cuda", "--json", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["speedup"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--arch resnet9", "resnet9 has 9 layers: must be 6n+2"),
        ("--arch resnet8 --method foo", "unknown method 'foo'"),
        ("--precision int8", "unknown value of --precision 'int8'"),
        ("--compile maybe", "unknown value of --compile 'maybe'"),
        ("--peers baselin", "unknown value of --peers 'baselin'"),
        ("--image-size 0", "--image-size is 0: must be at least 1"),
        ("--batch-size 0", "--batch-size is 0: must be at least 1"),
        ("--smoothing 1", "--smoothing is 1.0: must be in [0, 1)"),
        ("--batch-size 99999999", "choose fewer or smaller images"),
        ("--device tpu", "device is 'tpu'"),
        ("--precision float16", "on a CPU it must be float32 or bfloat16"),
        ("--out /dev/null/bench", "--out is /dev/null/bench: cannot write there"),
    ],
    ids=lambda value: value if value.startswith("--") else "",
)
def test_a_mistake_is_one_line(flags, message, tmp_path, capsys):
    device = [] if "--device" in flags else ["--device", "cpu"]
    out = [] if "--out" in flags else ["--out", str(tmp_path)]
    assert main(["bench", "step", "--quick", *flags.split(), *device, *out]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("fastdhm: error: ") == 1
