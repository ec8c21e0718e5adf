"""Data sets opened for training: either loader, bad images, grey of more bits, .beton files without their images."""

import shutil

import numpy as np
import pytest
from batches import ALL_KINDS, KINDS, assert_same, read
from PIL import Image

from fastdhm.data import DataOptions, open_loaders
from fastdhm.errors import UserError

OPEN = {
    "batch_size": 7,
    "eval_batch_size": 7,
    "image_size": 16,
    "crop": "scale",
    "crop_ratio": 1.0,
    "seed": 0,
    "workers": 2,
}


@ALL_KINDS
def test_open_loaders(tmp_path, kind):
    said = []
    options = {**OPEN, "crop": "pad", "image_size": 32} if kind == "resident" else OPEN
    data = open_loaders("synthetic:64", tmp_path, DataOptions(loader=kind, **options), say=said.append)
    assert (data.kind, len(data.classes), len(data.train), len(data.val)) == (kind, 10, 9, 3)
    assert [len(batch.target_B) for batch in read(data.val, 0)] == [7, 7, 2]
    assert len(said) == (2 if kind == "ffcv" else 0)
    open_loaders("synthetic:64", tmp_path, DataOptions(loader=kind, **options), say=said.append)
    assert len(said) == (2 if kind == "ffcv" else 0)


@KINDS
def test_open_loaders_skip_bad(bad_root, tmp_path, kind):
    said = []
    data = open_loaders(
        f"folder:{bad_root}", tmp_path, DataOptions(loader=kind, skip_bad=True, **OPEN), say=said.append
    )
    assert data.train.num_samples == 28
    assert len(read(data.train, 0)) == 4
    assert any("left out" in line for line in said)


def test_open_loaders_stops_at_bad_images(ffcv, bad_root, tmp_path):
    with pytest.raises(UserError, match="text.jpg"):
        open_loaders(f"folder:{bad_root}", tmp_path, DataOptions(loader="ffcv", **OPEN))


@pytest.mark.parametrize("mistake", ["class-in-train-only", "class-emptied", "folder-that-cannot-be-entered"])
def test_a_mistake_in_the_folders_is_no_reason_to_train_on_old_files(tmp_path, mistake):
    root, options = tmp_path / "images", {**OPEN, "loader": "resident", "image_size": 8, "crop": "pad"}
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (8, 8)).save(root / split / name / f"{i}.png")
    open_loaders(f"folder:{root}", tmp_path, DataOptions(**options))
    if mistake == "class-in-train-only":
        (root / "train/c").mkdir()
        Image.new("RGB", (8, 8)).save(root / "train/c/0.png")
    elif mistake == "class-emptied":
        shutil.rmtree(root / "val/b")
        (root / "val/b").mkdir()
    else:
        (root / "train/a/more").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match="train: c|val/b: this class folder has no images|a/more: cannot be read"):
        open_loaders(f"folder:{root}", tmp_path, DataOptions(**options))


@ALL_KINDS
def test_a_range_of_grey_is_the_same_through_every_loader(tmp_path, kind):
    root, said = tmp_path / "xray", []
    for split in ("train", "val"):
        for name, value in (("dark", 1000), ("light", 3000)):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(np.full((16, 16), value + i, np.uint16)).save(root / split / name / f"{i}.png")
    options = {**OPEN, "batch_size": 8, "crop": "pad" if kind == "resident" else "scale"}

    def levels(grey_range):
        how = DataOptions(loader=kind, grey_range=grey_range, **options)
        data = open_loaders(f"folder:{root}", tmp_path, how, say=said.append)
        (batch,) = read(data.train, 0)
        return [sorted(set(batch.image_BHWC[batch.target_B == k].flatten().tolist())) for k in (0, 1)]

    assert levels(None) == [[3], [11]]
    assert any("8 images of 16-bit grey" in line and "--grey-range 0,4095" in line for line in said)
    assert levels((0, 4095)) == [[62], [187]]
    assert levels((0, 3003)) == [[85], [255]]
    assert levels(None) == [[3], [11]]


def test_betons_serve_when_the_images_are_gone(ffcv, odd_root, tmp_path):
    root, said = tmp_path / "images", []
    shutil.copytree(odd_root, root)
    first = open_loaders(f"folder:{root}", tmp_path, DataOptions(loader="ffcv", **OPEN), say=said.append)
    shutil.rmtree(root)
    said.clear()
    second = open_loaders(f"folder:{root}", tmp_path, DataOptions(loader="ffcv", **OPEN), say=said.append)
    assert "using the .beton files alone" in said[0]
    assert second.classes == first.classes == ("cats", "dogs")
    assert_same(read(first.train, 0), read(second.train, 0))
    with pytest.raises(UserError, match="does not exist"):
        open_loaders(f"folder:{root}", tmp_path, DataOptions(loader="torch", **OPEN))
