"""How a data set is stored, and what cannot be."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from small_betons import RAW

from fastdhm.data.beton import format as beton_format
from fastdhm.data.beton.files import build, verify
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.beton.source import BetonSource
from fastdhm.data.sources.load import load_sources
from fastdhm.errors import UserError


def test_smart_keeps_the_pixels_of_small_images(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for side in (96, 97):
            Image.effect_noise((side, side), 60).convert("RGB").save(tmp_path / split / "a" / f"{side}.png")
    train, _ = load_sources(f"folder:{tmp_path}", tmp_path)
    path = tmp_path / "b" / "train.beton"
    build(train, path, ImageSettings(mode="smart"), workers=1, progress=False)
    index = beton_format.read_index(path)
    assert index.sample_N["f0"]["mode"].tolist() == [beton_format.MODES["raw"], beton_format.MODES["jpg"]]
    stored, source = BetonSource(path), [np.asarray(train.image(i)) for i in range(2)]
    assert np.array_equal(np.asarray(stored.image(0)), source[0])
    assert not np.array_equal(np.asarray(stored.image(1)), source[1])
    verify(path, progress=False)


@pytest.mark.parametrize(
    ("dataset", "wishes", "tag"),
    [
        ("imagenet", {}, "smart90-500px"),
        ("imagenet", {"store": "raw", "size": 256}, "raw-256px"),
        ("folder:x", {"store": "jpg", "size": 0, "quality": 95}, "jpg95"),
        ("folder:x", {"quality": 80}, "smart80-500px"),
        ("cifar10", {}, "raw"),
        ("cifar10", {"store": "jpg"}, "jpg90"),
        ("market1501", {"size": 0}, "raw"),
    ],
    ids=str,
)
def test_how_a_data_set_is_stored(dataset, wishes, tag):
    assert ImageSettings.for_dataset(dataset, **wishes).tag == tag


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"store": "png"}, "image mode is 'png': must be one of raw, jpg, smart"),
        ({"size": -3}, "maximum resolution is -3"),
        ({"store": "jpg", "quality": 101}, "JPEG quality is 101"),
        ({"store": "raw", "quality": 90}, "store quality is 90, but plain pixels have none"),
    ],
    ids=str,
)
def test_how_a_data_set_cannot_be_stored(wishes, message):
    with pytest.raises(UserError, match=message):
        ImageSettings.for_dataset("imagenet", **wishes)


@pytest.mark.parametrize("values", [{"mode": "png"}, {"quality": 0}, {"quality": 101}, {"max_resolution": 0}], ids=str)
def test_image_settings_mistakes(values):
    with pytest.raises(UserError):
        dataclasses.replace(RAW, **values)
