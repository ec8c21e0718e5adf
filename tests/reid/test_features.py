import json

import numpy as np
import pytest
import torch
from torch import nn

from fastdhm.errors import UserError
from fastdhm.reid import features as reid_features
from fastdhm.reid.features import extract_features, load_features, save_features


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7), nn.Linear(7, 4)
    )


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 6, 5, generator=generator) for size in (4, 4, 2)]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
def test_features_are_what_the_classifier_takes(training):
    model = network().train(training)
    features = extract_features(model, iter(batches()), layer="5")
    assert model.training is training
    assert not model[5]._forward_pre_hooks
    torch.testing.assert_close(features, model.eval()[:5](torch.cat(batches())))


def test_flip_averages_with_the_mirror_image():
    model, images = network(), torch.cat(batches())
    features = extract_features(model, [images], layer="5", flip=True)
    trunk = model.eval()[:5]
    torch.testing.assert_close(features, (trunk(images) + trunk(images.flip(3))) / 2)


def test_normalised_features_have_length_one():
    features = extract_features(network(), batches(), layer="5", flip=True, normalise=True)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(10))


def test_a_convolution_as_classifier_has_its_pooled_input_as_features():
    body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
    model = nn.Sequential(*body, nn.Conv2d(5, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.cat(batches())
    torch.testing.assert_close(extract_features(model, [images], layer="2"), body(images).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        (nn.Sequential(nn.Flatten(1, 2), nn.Linear(5, 4)), [torch.ones(2, 3, 8, 5)] * 0, "no batch"),
        (nn.Sequential(nn.Flatten(0, 1), nn.Linear(5, 4)), [torch.ones(2, 3, 8, 5)], r"got \[\(6, 5\)\] for a batch"),
    ],
    ids=["no-batch", "not-all-images"],
)
def test_network_without_features_is_refused(model, images, message):
    with pytest.raises(ValueError, match=message):
        extract_features(model, images, layer="1")


@pytest.mark.parametrize("suffix", [".safetensors", ".npy"])
def test_saved_features_come_back(tmp_path, suffix):
    names, features = ["a/1.jpg", "grün.png"], torch.rand(2, 3)
    save_features(tmp_path / f"e{suffix}", features, names)
    loaded, loaded_names = load_features(tmp_path / f"e{suffix}")
    assert torch.equal(loaded, features)
    assert loaded_names == names
    assert not list(tmp_path.glob("*.tmp"))


def test_npy_is_readable_without_us(tmp_path):
    save_features(tmp_path / "e.npy", torch.ones(1, 2), ["a.jpg"])
    assert np.load(tmp_path / "e.npy").tolist() == [[1, 1]]
    assert json.loads((tmp_path / "e.json").read_text()) == ["a.jpg"]


def test_names_that_no_header_holds_go_beside(tmp_path, monkeypatch):
    names, features = ["a" * 300, 'b"\\ü' * 100], torch.rand(2, 3)
    for most, files in ((1600, ["e.safetensors"]), (1200, ["e.json", "e.safetensors"])):
        monkeypatch.setattr(reid_features, "HEADER_BYTES", most)
        save_features(tmp_path / "e.safetensors", features, names)
        assert sorted(path.name for path in tmp_path.iterdir()) == files
        loaded, loaded_names = load_features(tmp_path / "e.safetensors")
        assert torch.equal(loaded, features) and loaded_names == names


@pytest.mark.slow
def test_two_million_names_can_be_saved(tmp_path):
    names = [f'a folder/with "names"/{i:040}.jpg' for i in range(2_000_000)]
    save_features(tmp_path / "e.safetensors", torch.zeros(len(names), 1), names)
    assert (tmp_path / "e.json").exists() and load_features(tmp_path / "e.safetensors")[1] == names


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="not '.txt'"):
        save_features(tmp_path / "e.txt", torch.ones(1, 2), ["a"])
    with pytest.raises(ValueError, match="2 names for 1"):
        save_features(tmp_path / "e.npy", torch.ones(1, 2), ["a", "b"])
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match="cut.npy"):
        load_features(tmp_path / "cut.npy")
