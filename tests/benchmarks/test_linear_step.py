"""``fastdhm bench linear --step``: both forms of a step, which are held against each other first."""

import dataclasses
import json

import pytest

from fastdhm.benchmarks import linear_step
from fastdhm.cli import main
from fastdhm.ops import _extension

RUN = ("bench", "linear", "--step", "resnet8", "--quick", "--json")


def test_smoke_run(tmp_path, capsys):
    assert main([*RUN, "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    (comparison,) = record["comparisons"]
    assert "100 classes, float32" in comparison["label"] and set(comparison["peers"]) == {"linear", "logits"}
    assert [mark["name"] for mark in record["marks"]] == ["linear over logits"]


@pytest.mark.slow
@pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))
def test_a_step_that_learns_something_else_gets_no_time(tmp_path, capsys, monkeypatch):
    right = linear_step.Engine

    def other(config, num_classes):
        return right(dataclasses.replace(config, seed=int(config.loss == "linear")), num_classes)

    monkeypatch.setattr(linear_step, "Engine", other)
    assert main([*RUN, "--out", str(tmp_path)]) == 1
    peers = json.loads(capsys.readouterr().out)["comparisons"][0]["peers"]
    assert "from" in peers["linear"]["failure"] and peers["logits"]["median_ms"] > 0


@pytest.mark.parametrize(
    "flag", [("--classes", "0"), ("--classes", "100000000000"), ("--batch-size", "0"), ("--step", "resnet7")]
)
def test_a_mistake_is_one_line(flag, capsys):
    assert main(["bench", "linear", "--step", "resnet8", *flag]) == 2
    assert flag[1] in capsys.readouterr().err
