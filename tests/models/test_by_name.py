"""Networks by name, of this package and of libraries."""

import copy
import sys

import pytest
import torch
import torchvision
from attached import images

from fastdhm import models


def test_without_timm_its_networks_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="timm is not installed: pip install timm"):
        models.build("timm:resnet18", 10)


def test_networks_by_name():
    model = models.build("torchvision:mobilenet_v3_small", 10, ["B1"])
    assert model.branch_names == ("B0", "B1")
    assert type(model.trunk) is torchvision.models.MobileNetV3
    twin = copy.deepcopy(model).eval()
    assert torch.equal(twin(images(2, 3, 64, 64)), model.eval()(images(2, 3, 64, 64)))
    assert models.build("torchvision:mobilenet_v3_small", 10, ()).branch_names == ("B0",)
    assert models.inventory("torchvision:regnet_y_400mf").branches.keys() == {"B0", "B1", "B2"}


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (
            "torchvision:mobilenet_v33",
            "torchvision has no network 'mobilenet_v33'; did you mean torchvision:mobilenet_v",
        ),
        ("keras:resnet", "unknown architecture 'keras:resnet'"),
        ("torchvision:vit_b_16", "no stage was found"),
    ],
)
def test_unknown_names_are_refused(arch, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        models.build(arch, 10)
