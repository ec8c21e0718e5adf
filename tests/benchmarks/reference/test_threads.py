"""SPDL's peer reads every photograph once and crops it; where it is not installed, that is said."""

import sys

import pytest
import torch

from fastdhm.benchmarks.loader import COLOURS, draw_photographs
from fastdhm.benchmarks.reference.threads import spdl_batches, why_no_spdl
from fastdhm.config import TrainConfig


def test_an_epoch_has_every_photograph_once(tmp_path):
    source = draw_photographs(tmp_path / "train", 16)
    if missing := why_no_spdl(source):
        pytest.skip(missing)
    config = TrainConfig(image_size=64, batch_size=6)
    images, targets = zip(*spdl_batches(source, config, workers=2, seed=0), strict=True)
    assert [tuple(image.shape) for image in images] == [(6, 64, 64, 3), (6, 64, 64, 3), (4, 64, 64, 3)]
    assert torch.cat(targets).bincount().tolist() == [2] * 8
    far_B = torch.cat(images).float().mean((1, 2)) - torch.from_numpy(COLOURS)[torch.cat(targets)]
    assert far_B.abs().max() < 30


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    source = draw_photographs(tmp_path / "train", 8)
    monkeypatch.setitem(sys.modules, "spdl", None)
    monkeypatch.setitem(sys.modules, "spdl.io", None)
    assert why_no_spdl(source) == "SPDL is not installed: pip install spdl"
