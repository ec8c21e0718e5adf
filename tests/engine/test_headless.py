"""Runs whose loss takes the classifiers with it: the same run, chosen where the logits are large."""

import pytest
import torch
import yaml

from fastdhm.cli import main
from fastdhm.engine import headless
from fastdhm.engine.saved.record import read_log
from runs import command

DATA = ("--dataset", "synthetic:96:12", "--batch-size", "16", "--epochs", "2", "--log-every", "1")


def run(folder, *flags):
    assert main(command(folder, *DATA, *flags)) == 0
    rows = read_log(folder)
    values = [{k: v for k, v in row.items() if k.split("/")[0] in ("loss", "ce", "mimic", "train_error", "val_error")}
              for row in rows]  # fmt: skip
    return values, yaml.safe_load((folder / "config.yaml").read_text())["loss"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--mixup", "0.4", "--class-weights", "auto", "--label-smoothing", "0.1"),
        pytest.param(("--sampler", "structural", "--ema", "0.9"), marks=pytest.mark.slow),
        pytest.param(("--accumulate", "2", "--activation-checkpointing", "true"), marks=pytest.mark.slow),
        pytest.param(("--method", "baseline", "--only-branch", "B1"), marks=pytest.mark.slow),
        pytest.param(("--impl", "cpp", "--dropout", "0.1", "--arch", "wrn-10-1"), marks=pytest.mark.slow),
    ],
    ids=lambda flags: flags[0],
)
def test_it_is_the_same_run(tmp_path, flags):
    whole, form = run(tmp_path / "logits", *flags)
    assert form == "logits"  # of so few classes
    ours, form = run(tmp_path / "linear", *flags, "--loss", "linear")
    assert form == "linear" and len(ours) == len(whole)
    assert "train_error/B1" in ours[1] or "train_error/B0" in ours[1]
    for one, other in zip(ours, whole, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_it_compiles(tmp_path):
    flags = ("--branches", "B2", "--max-steps", "3", "--deterministic", "true")
    ours, _ = run(tmp_path / "on", *flags, "--loss", "linear", "--compile", "on")
    whole, _ = run(tmp_path / "off", *flags)
    assert [row["loss"] for row in ours if "loss" in row] == pytest.approx(
        [row["loss"] for row in whole if "loss" in row], rel=2e-3
    )


def test_auto_takes_it_where_the_logits_are_large_and_says_so(tmp_path, monkeypatch, capsys):
    needed = 3 * 3 * 16 * 12 * 4  # copies, branches, images, classes, bytes
    monkeypatch.setattr(headless, "_memory_bytes", lambda device: headless.SHARE * needed)
    assert run(tmp_path / "whole", "--max-steps", "1")[1] == "logits"
    assert "at once" not in capsys.readouterr().out
    monkeypatch.setattr(headless, "_memory_bytes", lambda device: headless.SHARE * (needed - 1))
    assert run(tmp_path / "linear", "--max-steps", "1")[1] == "linear"
    said = " ".join(capsys.readouterr().out.split())
    assert "loss with 3 classifiers of 12 classes, a part of the logits at a time" in said
    assert run(tmp_path / "eager", "--max-steps", "1", "--impl", "eager")[1] == "logits"
    said = " ".join(capsys.readouterr().out.split())
    assert "loss from all logits of a step at once, 6.4e-06 GiB, as impl is eager" in said


def test_the_processes_of_a_machine_share_its_memory(monkeypatch):
    alone = headless._memory_bytes(torch.device("cpu"))
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, str(value))
    assert headless._memory_bytes(torch.device("cpu")) == alone // 2  # of the eight, two are here


@pytest.mark.slow
def test_a_resume_may_change_it(tmp_path, capsys):
    run(tmp_path / "run", "--max-steps", "2", "--loss", "linear")
    assert main(["train", "--resume", str(tmp_path / "run"), "--max-steps", "4", "--loss", "logits"]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["loss"] == "logits"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--impl", "eager"), "loss is linear: must be logits or auto with impl eager"),
        (("--teacher", "torchvision:resnet18"), "logits or auto with a teacher"),
        (("--grad-cosine", "2"), "logits or auto with grad_cosine"),
        (("--ce-weight", "0"), "logits or auto with ce_weight 0"),
        (("--arch", "torchvision:squeezenet1_0"), "trunk.classifier.1 is of Conv2d: set loss to logits"),
    ],
    ids=str,
)
def test_what_does_not_go_with_it_is_refused(tmp_path, capsys, flags, message):
    assert main(command(tmp_path / "run", *DATA, "--loss", "linear", *flags)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
