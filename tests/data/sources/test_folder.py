import os
import pickle

import numpy as np
import pytest
from PIL import Image

from fastdhm.data.images.read import read_image
from fastdhm.data.sources import arrays
from fastdhm.data.sources.arrays import ArraySource
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
        pytest.param(["train/a", "valid/a"], "no folder named 'val', but valid. It", id="val-under-another-name"),
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
    with pytest.raises(UserError, match="train/b: this class folder holds no image"):
        load_sources(f"folder:{tmp_path}", tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fashionmnist", "did you mean 'fashion-mnist'"),
        ("cifar-10", "did you mean 'cifar10'"),
        ("folder", "folder:PATH"),
        ("nonsense-without-neighbour", "known: fashion-mnist"),
        ("synthetic:0", "synthetic:N"),
        ("synthetic:x", "synthetic:N"),
    ],
)
def test_unknown_data_set(tmp_path, name, hint):
    with pytest.raises(UserError, match=hint):
        load_sources(name, tmp_path)


def test_imagenet_is_looked_for_in_both_places(photo_root, tmp_path):
    assert len(load_sources("imagenet", photo_root)[0]) == 24
    (tmp_path / "imagenet").symlink_to(photo_root)
    assert len(load_sources("imagenet", tmp_path)[0]) == 24


def test_synthetic_is_a_function_of_split_and_index(tmp_path):
    train, val = load_sources("synthetic:40", tmp_path)
    assert (len(train), len(val)) == (40, 10)
    pixels = train.pixels(np.arange(40))
    assert np.array_equal(pixels[7], np.asarray(train.image(7)))
    assert not np.array_equal(pixels[:10], val.pixels(np.arange(10)))
    assert len({image.tobytes() for image in pixels}) == 40


def test_synthetic_classes_can_be_learned(tmp_path):
    """The direction of the strongest wave tells the class, so a network can find it too."""
    train, _ = load_sources("synthetic:200", tmp_path)
    spectra = np.abs(np.fft.fft2(train.pixels(np.arange(200)).mean(axis=3)))[:, :, :17]
    spectra[:, 0, 0] = 0
    peak_y, peak_x = np.unravel_index(spectra.reshape(200, -1).argmax(axis=1), (32, 17))
    angle = np.degrees(np.arctan2(np.where(peak_y > 16, peak_y - 32, peak_y), peak_x)) % 180
    off = (angle - 18 * train.target_N + 90) % 180 - 90
    assert np.mean(np.abs(off) < 20) > 0.9


def test_sources_can_be_pickled(photo_root, tmp_path):
    for dataset in (f"folder:{photo_root}", "synthetic:8"):
        train, _ = load_sources(dataset, tmp_path)
        again = pickle.loads(pickle.dumps(train))
        assert np.array_equal(np.asarray(again.image(3)), np.asarray(train.image(3)))


@pytest.mark.skipif(not arrays.DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_from_debian(tmp_path):
    train, val = load_sources("fashion-mnist", tmp_path)
    assert (len(train), len(val)) == (60_000, 10_000)
    assert np.bincount(train.target_N).tolist() == [6000] * 10
    assert train.image(0).mode == "RGB"
    assert train.label(17) == "fashion-mnist/train[17]"


@pytest.mark.parametrize("dataset", ["fashion-mnist", "cifar10", "cifar100"])
def test_failed_download_says_what_to_do(monkeypatch, tmp_path, dataset):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(arrays, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with pytest.raises(UserError, match=str(tmp_path)) as caught:
        load_sources(dataset, tmp_path)
    assert ("apt-get install dataset-fashion-mnist" in str(caught.value)) == (dataset == "fashion-mnist")


def test_changed_cifar_file_is_never_opened(monkeypatch, tmp_path):
    """The archives are pickles, and a pickle can run code: a file with another checksum is not loaded."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": [], "labels": []}))
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", lambda *_, **__: None)
    monkeypatch.setattr("pickle.load", lambda *_, **__: pytest.fail("a file was loaded unchecked"))
    with pytest.raises(UserError, match="cifar10"):
        load_sources("cifar10", tmp_path)


def test_cut_short_idx_file_is_named(monkeypatch, tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for what in ("images-idx3", "labels-idx1"):
            (raw / f"{split}-{what}-ubyte.gz").write_bytes(b"\x1f\x8b short")
    monkeypatch.setattr(arrays, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    with pytest.raises(UserError, match="train-images-idx3-ubyte.gz: not a complete idx file"):
        load_sources("fashion-mnist", tmp_path)


def test_grey_array_is_given_three_channels():
    source = ArraySource(
        "grey", "train", np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1), np.array([0, 1]), ("x", "y")
    )
    pixels = source.pixels(np.array([1]))
    assert pixels.shape == (1, 2, 2, 3)
    assert np.array_equal(pixels[0, :, :, 0], pixels[0, :, :, 2])
