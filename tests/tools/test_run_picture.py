"""The picture of a run in the guide can be made again."""

import runpy
from pathlib import Path

from fastdhm.engine import train

TOOL = Path(__file__).parents[2] / "tools" / "run_picture.py"


def test_a_picture_shows_the_plan_the_bar_and_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "TrainingDisplay", train.TrainingDisplay)  # the tool sets its own
    flags = ["--dataset", "synthetic:64", "--epochs", "1", "--run-dir", "run"]
    runpy.run_path(str(TOOL))["main"](["--out", str(tmp_path / "run.svg"), *flags])
    picture = (tmp_path / "run.svg").read_text("utf-8").replace("&#160;", " ")
    for shown in ("$", "synthetic:64", "resnet8", "epoch 1/1", "━━━", "top-1 %", "network.safetensors"):
        assert shown in picture
    assert "@font-face" not in picture  # it would be fetched from elsewhere
