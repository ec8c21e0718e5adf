"""A folder of images, a folder a class."""

import os

import pytest
from PIL import Image

from fastdhm.data.images.read import read_image
from fastdhm.data.sources.load import load_sources
from fastdhm.errors import UserError


def test_every_odd_image_becomes_rgb(odd_root):
    train, _ = load_sources(f"folder:{odd_root}", odd_root)
    images = {train.label(i).split("/")[-1]: train.image(i) for i in range(len(train))}
    assert len(train) == 2 * 14
    assert {image.mode for image in images.values()} == {"RGB"}
    assert images["turned.jpg"].size == (30, 40)
    assert images["one-pixel.png"].size == (1, 1)
    assert images["wide.JPEG"].size == (900, 2)
    assert images["sixteen-bit.png"].getextrema() == ((0, 1199 * 50 >> 8),) * 3
    assert images["float.tiff"].getextrema() == ((0, 255),) * 3


def test_transparency_lies_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_files_without_an_image_suffix_are_counted(odd_root):
    train, _ = load_sources(f"folder:{odd_root}", odd_root)
    assert "2 other files (.txt)" in train.note
    assert "notes.txt" in train.note


def test_bad_image_is_named(bad_root, bad_names):
    train, _ = load_sources(f"folder:{bad_root}", bad_root)
    for i in range(len(train)):
        name = train.label(i).split("/")[-1]
        if name in bad_names:
            with pytest.raises(UserError, match=name):
                train.image(i)


def test_order_is_sorted_and_targets_follow_folders(photo_root):
    train, val = load_sources(f"folder:{photo_root}", photo_root)
    labels = [train.label(i) for i in range(len(train))]
    assert labels == sorted(labels)
    assert train.classes == val.classes == ("a", "b")
    assert train.target_N.tolist() == [0] * 12 + [1] * 12


def test_digest_changes_with_a_file(photo_root, tmp_path):
    root = tmp_path / "copy"
    for split in ("train", "val"):
        (root / split / "a").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / split / "a" / "x.png")
    first = load_sources(f"folder:{root}", root)[0].digest()
    assert load_sources(f"folder:{root}", root)[0].digest() == first
    Image.new("RGB", (5, 4)).save(root / "train/a/x.png")
    assert load_sources(f"folder:{root}", root)[0].digest() != first


def test_name_that_is_not_utf8_can_be_printed(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        with open(os.fsencode(tmp_path / split / "a") + b"/\xff.png", "wb") as file:
            file.write(b"text")
    train, _ = load_sources(f"folder:{tmp_path}", tmp_path)
    with pytest.raises(UserError) as caught:
        train.image(0)
    assert "a/\\xff.png" in str(caught.value).encode().decode()
    assert train.label(0).endswith("a/\\xff.png")


def _tree(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
        if name.count("/") == 1:
            Image.new("RGB", (2, 2)).save(root / name / "x.png")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        pytest.param(None, "does not exist", id="missing"),
        pytest.param([], "no folder named 'train'", id="empty"),
        pytest.param(["train/a"], "no folder named 'val'", id="no-val"),
        pytest.param(["train/a", "valid/a"], "no folder named 'val', but has valid. It", id="val-under-another-name"),
        pytest.param(["train", "val"], "no class folders", id="no-classes"),
        pytest.param(["train/a", "train/b", "val/a", "val/c"], "Only in train: b; only in val: c", id="classes-differ"),
    ],
)
def test_folder_mistakes(tmp_path, folders, message):
    root = tmp_path / "root"
    if folders is not None:
        root.mkdir()
        _tree(root, folders)
    with pytest.raises(UserError, match=message) as caught:
        load_sources(f"folder:{root}", tmp_path)
    assert str(root) in str(caught.value)


def test_empty_class_folder_is_named(tmp_path):
    _tree(tmp_path, ["train/a", "train/b", "val/a", "val/b"])
    (tmp_path / "train/b/x.png").unlink()
    with pytest.raises(UserError, match="train/b: this class folder has no images"):
        load_sources(f"folder:{tmp_path}", tmp_path)
