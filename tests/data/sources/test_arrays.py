"""Data sets that are arrays: Fashion-MNIST and CIFAR, whole, damaged, changed or not to be had."""

import pickle

import numpy as np
import pytest

from fastdhm.data.sources import arrays
from fastdhm.data.sources.arrays import ArraySource
from fastdhm.data.sources.load import load_sources
from fastdhm.errors import UserError


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
