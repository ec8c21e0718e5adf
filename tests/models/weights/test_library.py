"""Trained networks of torchvision and timm, without a network: what they are, and what they say of themselves."""

import urllib.error

import pytest
import torch
import torchvision

from fastdhm import models

timm = pytest.importorskip("timm")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where torch.hub keeps what it has downloaded; nothing is downloaded."""

    def download(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_a_network_of_torchvision_has_its_weights_classes_and_images(cache):
    trained = torchvision.models.squeezenet1_1()
    torch.save(trained.state_dict(), cache / "squeezenet1_1-b8a52dc0.pth")
    found = models.library_network("torchvision:squeezenet1_1")
    torch.testing.assert_close(found.network.state_dict(), trained.state_dict(), rtol=0, atol=0)
    assert found.weights == "SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert (found.facts.num_classes, found.facts.classes[0], found.facts.image_size) == (1000, "tench", 224)
    assert (found.facts.mean, found.facts.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_without_a_network_the_file_to_fetch_is_named(cache):
    with pytest.raises(ValueError, match="could not be downloaded .*no route to host.*squeezenet1_0-.*.pth"):
        models.library_network("torchvision:squeezenet1_0")


def test_a_network_of_timm_has_its_weights_classes_and_images(monkeypatch):
    make, asked = timm.create_model, []

    def create_model(name, pretrained):
        asked.append((name, pretrained))
        return make(name)

    monkeypatch.setattr(timm, "create_model", create_model)
    found = models.library_network("timm:test_resnet.r160_in1k")
    assert asked == [("test_resnet.r160_in1k", True)] and found.weights == "r160_in1k"
    assert (found.facts.num_classes, found.facts.image_size) == (1000, 160)
    assert found.facts.classes[:2] == ("n01440764", "n01443537"), "as ImageNet's folders are called"


@pytest.mark.parametrize("error", [OSError("no route to host\nmore"), RuntimeError("no pretrained weights exist")])
def test_weights_of_timm_that_cannot_be_had_are_said(monkeypatch, error):
    def create_model(name, pretrained):
        raise error

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(ValueError, match=r"timm's weights of resnet18 could not be loaded \(no .*: .*--teacher-arch"):
        models.library_network("timm:resnet18")


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="timm has no network 'resnet5O'; did you mean timm:resnet5"):
        models.library_network("timm:resnet5O")
