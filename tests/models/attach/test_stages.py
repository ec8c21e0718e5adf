"""Stages of networks from libraries and of networks as people write them."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from attached import check_whole, images, plain
from torch import nn

import fastdhm
from fastdhm import models
from fastdhm.models.attach.attach import attach

# network: forks of B1 and B2, blocks of B1 and B2 (the layers of a dense block count), read off their papers' tables
TORCHVISION = {
    "resnet18": (("layer3", "layer2"), ((2,), (1, 1))),
    "resnet50": (("layer3", "layer2"), ((3,), (3, 2))),
    "vgg16_bn": (("features.32", "features.22"), ((3,), (2, 2))),
    "densenet121": (("features.denseblock3", "features.denseblock2"), ((17,), (13, 9))),
    "mobilenet_v2": (("features.13", "features.6"), ((5,), (4, 3))),
    "mobilenet_v3_small": (("features.8", "features.3"), ((4,), (3, 3))),
    "efficientnet_b0": (("features.5", "features.3"), ((6,), (3, 4))),
    "regnet_y_400mf": (("trunk_output.block3", "trunk_output.block2"), ((6,), (3, 3))),
    "convnext_tiny": (("features.5", "features.3"), ((4,), (6, 3))),
}
TIMM = (
    "resnet18",
    "densenet121",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "regnety_002",
    "convnext_atto",
    "vgg11_bn",
)


class Functional(nn.Module):
    """Activations and pooling are functions of the forward."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(c, 8, 3, padding=1) for c in (1, 8, 8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.dropout(F.max_pool2d(F.relu(self.conv2(x)), 2), 0.5, self.training)
        return self.fc(F.relu(self.conv3(x), inplace=True).mean((2, 3)))


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_get_the_branches_of_the_principles(name):
    forks, blocks = TORCHVISION[name]
    with torch.device("cpu" if "regnet" in name else "meta"):
        network = torchvision.models.get_model(name, weights=None)
        model = attach(network, 10, verbose=False)
    assert tuple(branch.fork for branch in model.summary.branches.values()) == forks
    assert tuple(branch.blocks for branch in model.summary.branches.values()) == blocks
    b1, b2 = model.summary.branches.values()
    assert (b1.width, b2.width) == ("2x as wide", "as wide")
    assert sum(b2.blocks) < sum(b2.trunk_blocks) and b1.blocks == b1.trunk_blocks
    assert model.branches["B1"].fc.in_features == 2 * model.branches["B2"].fc.in_features or name == "densenet121"
    assert list(model.strip().state_dict()) == list(network.state_dict())


def test_looking_for_stages_draws_no_random_numbers():
    network, random = plain().train(), torch.get_rng_state()
    attach(network, branches=(), input_size=32, verbose=False)
    assert torch.equal(random, torch.get_rng_state())
    assert not any(t.any() for name, t in network.state_dict().items() if "running_mean" in name)


@pytest.mark.parametrize("name", TIMM)
def test_timm_networks_are_understood(name):
    timm = pytest.importorskip("timm", reason="timm is an optional extra, and not installed")
    with torch.device("meta"):
        network = timm.create_model(name)
        model = attach(network, 7, verbose=False)
        assert model(torch.empty(2, 3, 224, 224)).shape == (3, 2, 7)
    b1, b2 = model.summary.branches.values()
    assert (b1.width, b2.width) == ("2x as wide", "as wide")
    assert b1.blocks == b1.trunk_blocks and sum(b2.blocks) < sum(b2.trunk_blocks)
    assert type(model.strip()) is type(network)


def test_resnet50_has_the_branches_of_table_9():
    with torch.device("meta"):
        attached = attach(torchvision.models.resnet50(), verbose=False)
        table = models.build("resnet50", 1000)
    for name in ("B1", "B2"):
        shapes = [[tuple(p.shape) for p in model.branches[name].parameters()] for model in (attached, table)]
        assert sorted(shapes[0]) == sorted(shapes[1])


def test_a_sequential_network(capsys):
    torch.manual_seed(0)
    network = plain()
    model = fastdhm.attach(network, input_size=32)
    told = capsys.readouterr().out
    assert told == f"{model.summary}\n"
    assert "stage 4: 4x4, 16 channels, 3 x Conv2d (17 to 26)" in told
    assert "B1 forks after 16: 3 blocks (trunk 3), 2x as wide" in told
    assert "B2 forks after 9: 1+2 blocks (trunk 2+3), as wide" in told
    check_whole(network, model, images(4, 3, 32, 32))


def test_a_forward_of_functions():
    network = Functional()
    model = attach(network, branches=("B1",), input_size=(1, 28, 28), verbose=False)
    assert model.summary.branches["B1"].fork == "conv2"
    branch, x = model.branches["B1"].eval(), images(2, 8, 14, 14)
    conv3 = next(module for module in branch.modules() if isinstance(module, nn.Conv2d))
    expected = branch.fc(F.relu(conv3(F.max_pool2d(F.relu(x), 2))).mean((2, 3)))
    torch.testing.assert_close(branch(x), expected)
    assert not torch.equal(branch.train()(x), branch(x)), "the dropout between modules is lost"
    check_whole(network, model, images(3, 1, 28, 28))


def test_a_vit_without_forks_is_refused_with_the_reason():
    network = torchvision.models.VisionTransformer(32, 8, 4, 2, 16, 32, num_classes=5)
    with pytest.raises(ValueError, match=r"no stage was found.*from 0 to 3 \(EncoderBlock\) in forks="):
        attach(network, input_size=32)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="input_size is 32x32: too small, .* of ResNet has one pixel after layer4.*64"):
        attach(torchvision.models.resnet18(), input_size=32)
