"""What is the same data, and what is not any more."""

import shutil

import numpy as np
import pytest
from PIL import Image

from fastdhm.data.sources.identity import changes, identity
from fastdhm.data.sources.load import load_sources


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for split, each in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "a" / split / name).mkdir(parents=True)
            for i in range(each):
                picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                picture.save(tmp_path / "a" / split / name / f"{i}.png")
    return tmp_path / "a"


def of(folder):
    train, val = load_sources(f"folder:{folder}", folder)
    return {"train": identity(train), "val": identity(val)}


def test_a_copy_of_the_images_is_the_same_data(photos, tmp_path):
    before = of(photos)
    shutil.copytree(photos, tmp_path / "b", copy_function=shutil.copy)  # with other times of change
    assert changes(before, of(tmp_path / "b")) == []
    shutil.move(tmp_path / "b", tmp_path / "c")
    assert of(tmp_path / "c") == before


def test_an_image_more_is_counted(photos):
    before = of(photos)
    shutil.copy(photos / "train/cat/0.png", photos / "train/cat/9.png")
    assert changes(before, of(photos)) == ["train: 6 images, now 7"]


@pytest.mark.parametrize("change", ["renamed", "moved", "other pixels"])
def test_other_content_is_told_by_split(photos, change):
    before = of(photos)
    if change == "renamed":
        (photos / "val/cat/1.png").rename(photos / "val/cat/7.png")
    elif change == "moved":  # to another class
        (photos / "val/cat/1.png").rename(photos / "val/dog/1b.png")
    else:
        Image.new("RGB", (8, 8), "red").save(photos / "val/cat/1.png")
    (change,) = changes(before, of(photos))
    assert change.startswith("val: the same number of images, 4, with other names, labels or content")


def test_a_picture_of_the_same_size_is_another(photos):
    before, path = of(photos), photos / "train/cat/1.png"
    path.write_bytes(path.read_bytes()[:-30] + bytes(30))
    assert len(changes(before, of(photos))) == 1


def test_what_is_not_known_is_no_change(photos):
    now = of(photos)
    assert changes({}, now) == []
    assert changes({"train": {"count": 6, "digest": None}}, now) == []
    assert len(changes({"train": {"count": 5, "digest": None}}, now)) == 1
