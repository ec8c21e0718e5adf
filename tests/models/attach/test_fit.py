"""Norms and filters of a branch that is wider than its trunk."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from attached import check_whole, images
from torch import nn

from fastdhm.models.attach.attach import attach


class NoBias2dNorm(nn.LayerNorm):
    """Norms the channels of [B, C, H, W], as timm's LayerNorm2dNoBias does."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def test_norms_of_channels_first_maps_by_any_name():
    stages = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), NoBias2dNorm(b), nn.ReLU()) for a, b in ((3, 4), (4, 8), (8, 16))]
    network = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    model = attach(network, input_size=(3, 32, 24), verbose=False)
    assert model.summary.branches["B1"].width == "2x as wide"
    check_whole(network, model, images(2, 3, 32, 24))


def untracked(channels, built=True):
    norm = nn.BatchNorm2d(channels, track_running_stats=built)
    norm.track_running_stats = not built
    return norm


NORMS = {
    "statistics switched off": untracked,
    "statistics switched on": lambda channels: untracked(channels, built=False),
    "frozen": torchvision.ops.FrozenBatchNorm2d,
    "cumulative": lambda channels: nn.BatchNorm2d(channels, momentum=None),
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True),
    "group": lambda channels: nn.GroupNorm(2, channels),
    "synchronised": nn.SyncBatchNorm,
    "without parameters": lambda channels: nn.BatchNorm2d(channels, affine=False),
}


@pytest.mark.parametrize("case", NORMS)
def test_norms_of_a_branch_learn_for_any_norm_of_the_trunk(case):
    stages = (nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), NORMS[case](b), nn.ReLU()) for a, b in ((3, 4), (4, 8), (8, 16)))
    network = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    model = attach(network, input_size=32, verbose=False)
    assert model.summary.branches["B1"].width == "2x as wide"
    model(images(4, 3, 32, 32))
    with torch.no_grad():
        assert model.eval()(images(4, 3, 32, 32)).abs().max() < 10
    for norm in (module for module in model.branches.modules() if isinstance(module, nn.BatchNorm2d)):
        assert norm.running_mean is None or norm.running_mean.any()
    assert ("norms that learn in place of the trunk's FrozenBatchNorm2d" in str(model.summary)) == (case == "frozen")


class Slicing(nn.Module):
    """Goes on with a fixed number of its channels."""

    def __init__(self, before, after):
        super().__init__()
        self.half = after // 2
        self.conv, self.last = nn.Conv2d(before, after, 3, 2, 1), nn.Conv2d(self.half, after, 1)

    def forward(self, x):
        return F.relu(self.last(F.relu(self.conv(x)[:, : self.half])))


class Chunking(Slicing):
    """The same with half of the channels, whatever their number."""

    def forward(self, x):
        one, other = F.hardswish(self.conv(x)).chunk(2, 1)
        return F.relu6(self.last(one * F.hardsigmoid(other)))


@pytest.mark.parametrize(
    ("block", "width"), [(Slicing, "as wide (not wider: 24 of 32 filters"), (Chunking, "2x as wide")]
)
def test_no_filter_of_a_wider_branch_is_cut_off(block, width):
    network = nn.Sequential(block(3, 8), block(8, 8), block(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = attach(nn.Sequential(*network, nn.Linear(16, 5)), branches=("B1",), input_size=32, verbose=False)
    assert model.summary.branches["B1"].width.startswith(width)
