"""The reference's data: torchvision's transforms in the released code's order."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from fastdhm.benchmarks.reference.data import training_loader, training_set, training_transform
from fastdhm.config import TrainConfig
from fastdhm.data.sources.folder import FolderSource
from fastdhm.data.sources.synthetic import SyntheticSource
from fastdhm.errors import UserError

CONFIG = TrainConfig(dataset="synthetic:40", data_dir="/nonexistent", image_size=32, batch_size=8)


@pytest.mark.parametrize("crop", ["pad", "scale", "shift", "center"])
def test_every_crop_gives_normalised_squares(crop):
    config = dataclasses.replace(CONFIG, crop=crop, image_size=16, crop_ratio=0.875)
    image_CHW = training_transform(config)(Image.new("RGB", (32, 32), (255, 0, 0)))
    assert image_CHW.shape == (3, 16, 16)
    assert image_CHW[0].max().item() == pytest.approx((1 - 0.485) / 0.229, abs=1e-3)


def test_a_crop_that_only_the_engine_has_is_refused():
    with pytest.raises(UserError, match="crop is enlarge: the reference only has pad"):
        training_transform(dataclasses.replace(CONFIG, crop="enlarge"))


def test_images_in_memory_and_files_give_the_same(tmp_path):
    source = SyntheticSource("train", 20)
    for i in range(20):
        (tmp_path / f"class{source.target_N[i]}").mkdir(exist_ok=True)
        source.image(i).save(tmp_path / f"class{source.target_N[i]}" / f"{i:02}.png")
    config = dataclasses.replace(CONFIG, crop="center", flip=False)
    folder = training_set(FolderSource(tmp_path, "folder", "train"), config)
    by_path = {int(path[-6:-4]): folder[i] for i, (path, _) in enumerate(folder.samples)}
    for i, (image_CHW, target) in enumerate(training_set(source, config)):
        torch.testing.assert_close(image_CHW, by_path[i][0])
        assert target == by_path[i][1] == source.target_N[i]
        if i == 19:
            break


def test_an_epoch_has_every_image_but_a_last_short_batch():
    loader = training_loader(dataclasses.replace(CONFIG, batch_size=16), 0)
    batches = list(loader)
    assert [image.shape for image, _ in batches] == [(16, 3, 32, 32)] * 2
    assert np.bincount(torch.cat([target for _, target in batches]), minlength=10).sum() == 32
