"""``fastdhm bench loader``: samples are checked, then epochs are timed.

Legend: N samples, B batch, C channels.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch

from fastdhm.benchmarks import loader
from fastdhm.cli import main
from fastdhm.config import TrainConfig
from fastdhm.data.augment.transforms import DeviceTransform
from fastdhm.data.loaders import torch_loader
from fastdhm.data.loaders.build import pick_kind
from fastdhm.errors import UserError

QUICK = ["bench", "loader", "--quick", "--rounds", "1", "--images", "16", "--workers", "1", "--json"]


def has_ffcv():
    try:
        return pick_kind("ffcv")[0] == "ffcv"
    except UserError:
        return False


@pytest.mark.slow  # FFCV compiles for each of its ways
def test_smoke_run(tmp_path, capsys):
    assert main([*QUICK, "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    photographs, small, *augmented = (list(comparison["peers"]) for comparison in record["comparisons"])
    ffcv = ["ffcv jpg 500", "ffcv jpg 256", "ffcv raw 256"] if has_ffcv() else []
    assert photographs[: len(ffcv) + 2] == [*ffcv, "torch", "torchvision"]
    assert photographs[len(ffcv) + 2 :] in ([], ["spdl"])  # if it is installed
    assert small == ["resident", *(["ffcv"] if has_ffcv() else []), "torch", "torchvision"]
    assert augmented[0] == [*(["ffcv jpg 256 trivial"] if has_ffcv() else []), "torch trivial", "torchvision"]
    assert augmented[1] == ["resident trivial", "resident rand", "resident colours", "torchvision"]
    marks = {mark["name"] for mark in record["marks"]}
    assert "torchvision over resident trivial" in marks
    assert not marks & {"torchvision over resident rand", "torchvision over resident colours"}
    assert record["speedup"] > 0
    assert record["fastdhm_loader"] == ("ffcv jpg 256" if has_ffcv() else "torch")
    assert {path.name for path in tmp_path.iterdir()} == {"loader.json", "loader.csv", "loader.png"}


def test_photographs_have_the_colours_of_their_labels(tmp_path):
    source = loader.draw_photographs(tmp_path / "train", 16)
    assert np.bincount(source.target_N).tolist() == [2] * 8
    for i in range(16):
        colour_C = np.asarray(source.image(i)).mean((0, 1))
        assert source.image(i).size == (500, 375)
        assert np.abs(colour_C - loader.COLOURS[source.target_N[i]]).max() < 15


def test_colours_are_the_same_normalised():
    source = loader.draw_small(8)
    config = TrainConfig(image_size=32)
    image_BHWC = torch.from_numpy(source.pixels(np.arange(8)))
    normalised = DeviceTransform(config.mean, config.std)(image_BHWC, torch.arange(8), 0)
    expected_BC = loader.mean_colours(image_BHWC, None)
    torch.testing.assert_close(loader.mean_colours(normalised, config), expected_BC, atol=0.01, rtol=0)


def test_faults_are_found():
    expected_N = torch.tensor([0, 1, 2, 3])
    assert loader.find_fault(torch.tensor([3, 1, 0, 2]), expected_N, 0) is None
    assert loader.find_fault(torch.tensor([3, 1, 0]), expected_N, 0) == "an epoch has 3 samples: must be 4"
    assert "other labels" in loader.find_fault(torch.tensor([3, 1, 0, 0]), expected_N, 0)
    assert "do not match their labels: 2" in loader.find_fault(torch.tensor([3, 1, 0, 2]), expected_N, 2)


def test_a_loader_that_mixes_up_labels_gets_no_time(tmp_path, capsys, monkeypatch):
    honest = torch_loader.TorchLoader._batch

    def mixed_up(self, *answer):
        batch = honest(self, *answer)
        return dataclasses.replace(batch, target_B=batch.target_B.roll(1))

    monkeypatch.setattr(torch_loader.TorchLoader, "_batch", mixed_up)
    monkeypatch.setattr(loader, "_has_ffcv", lambda frame: False)
    assert main([*QUICK, "--out", str(tmp_path)]) == 1
    record = json.loads(capsys.readouterr().out)
    assert "images that do not match their labels" in record["comparisons"][0]["peers"]["torch"]["failure"]
    assert "median_ms" not in record["comparisons"][0]["peers"]["torch"]
    assert record["comparisons"][0]["peers"]["torchvision"]["median_ms"] > 0
    assert record["speedup"] is None
    assert list(record["comparisons"][1]["peers"]) == ["resident", "torch", "torchvision"]
    assert {path.name for path in tmp_path.iterdir()} == {"loader.json", "loader.csv", "loader.png"}


@pytest.mark.parametrize("flag", ["--images", "--workers", "--batch-size", "--rounds"])
def test_a_mistake_is_one_line(flag, tmp_path, capsys):
    assert main(["bench", "loader", flag, "0", "--out", str(tmp_path)]) == 2
    assert f"{flag} is 0: must be at least 1" in capsys.readouterr().err


def test_every_colour_needs_a_photograph(tmp_path, capsys):
    assert main(["bench", "loader", "--images", "7", "--out", str(tmp_path)]) == 2
    assert "--images is 7: must be at least 8" in capsys.readouterr().err
