"""MobileNet v1 (Howard et al., 2017) at full width, with the side branches of Table 10.

torchvision has only later versions. Modules are named as in timm's ``mobilenetv1_100``.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from fastdhm.models.base.branched import Branch, BranchedModel
from fastdhm.models.base.initialise import init_convolutions
from fastdhm.models.families.family import Family

# (channels, blocks) of each stage. The first block of a stage halves the resolution, except in the trunk's first stage.
STAGES = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))
# The same for the branches. The 4 blocks of 512 channels in B2 are our reading of the scanned table.
SIDE_STAGES = {"B1": ((2048, 2),), "B2": ((512, 4), (1024, 2))}
TAPS = {"B1": "blocks.3", "B2": "blocks.2"}
FORK_CHANNELS = {"B1": 512, "B2": 256}


class SeparableConv(nn.Module):
    """A depthwise 3x3 convolution and a pointwise 1x1 convolution, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv_dw = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv_pw = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv_dw(x)), inplace=True)
        return F.relu(self.bn2(self.conv_pw(x)), inplace=True)


def _stage(in_channels: int, channels: int, blocks: int, stride: int = 2) -> nn.Sequential:
    first = SeparableConv(in_channels, channels, stride)
    return nn.Sequential(first, *(SeparableConv(channels, channels, 1) for _ in range(blocks - 1)))


class MobileNet(nn.Module):
    """MobileNet v1: a strided stem of 32 channels, 13 separable convolutions in five stages, average pooling."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        (first, count), *_ = STAGES
        later = (_stage(before, after, n) for (before, _), (after, n) in pairwise(STAGES))
        self.blocks = nn.Sequential(_stage(32, first, count, stride=1), *later)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(STAGES[-1][0], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv_stem(x)), inplace=True))
        return self.classifier(self.avgpool(x).flatten(1))


def _branch(name: str, num_classes: int) -> Branch:
    stages = ((FORK_CHANNELS[name], 0), *SIDE_STAGES[name])
    made = [_stage(before, after, n) for (before, _), (after, n) in pairwise(stages)]
    return init_convolutions(Branch(made, stages[-1][0], num_classes))


def build(arch: str, num_classes: int, branches: tuple[str, ...]) -> BranchedModel:
    """MobileNet with the named branches: B1 forks after the 512-channel stage, B2 after the 256-channel one."""
    trunk = init_convolutions(MobileNet(num_classes))
    return BranchedModel(trunk, {name: _branch(name, num_classes) for name in branches}, TAPS)


FAMILY = Family(
    name="MobileNet v1",
    pattern="mobilenet",
    rule="mobilenet, at full width",
    examples=("mobilenet",),
    image_size=(256, 128),
    num_classes=751,
    branches=lambda arch: tuple(SIDE_STAGES),
    build=build,
)
