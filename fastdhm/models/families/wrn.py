"""Wide ResNets for small images (Zagoruyko and Komodakis, BMVC 2016) with the side branches of Table 8.

Modules are named as in the authors' released code.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fastdhm.models.base.branched import Branch, BranchedModel
from fastdhm.models.base.initialise import init_convolutions
from fastdhm.models.families.family import WHOLE_NUMBER, Family, branch_blocks, check_width, parts, stage_blocks

PATTERN = f"wrn-{WHOLE_NUMBER}-{WHOLE_NUMBER}"
TAPS = {"B1": "layer2", "B2": "layer1"}


class PreActBlock(nn.Module):
    """Two pre-activated 3x3 convolutions with dropout between them; the shortcut is 1x1 where the channels change."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = None
        if in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x), inplace=True)
        if self.shortcut is not None:
            x = self.shortcut(out)  # a projection starts from the activated input
        out = F.relu(self.bn2(self.conv1(out)), inplace=True)
        return x + self.conv2(self.dropout(out))


def _stage(in_channels: int, channels: int, blocks: int, dropout: float, stride: int = 2) -> nn.Sequential:
    first = PreActBlock(in_channels, channels, stride, dropout)
    return nn.Sequential(first, *(PreActBlock(channels, channels, 1, dropout) for _ in range(blocks - 1)))


class WideResNet(nn.Module):
    """A wide ResNet for images of about 32 pixels: three stages of 16, 32 and 64 times ``width`` channels."""

    def __init__(self, blocks: int, width: int, num_classes: int, dropout: float = 0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 16 * width, blocks, dropout, stride=1)
        self.layer2 = _stage(16 * width, 32 * width, blocks, dropout)
        self.layer3 = _stage(32 * width, 64 * width, blocks, dropout)
        self.bn = nn.BatchNorm2d(64 * width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv(x))))
        return self.fc(self.avgpool(F.relu(self.bn(x), inplace=True)).flatten(1))


def layout(arch: str) -> tuple[int, int, dict[str, tuple[int, ...]]]:
    """The blocks of each stage of ``wrn-D-K``, its width K, and the blocks of B1 (128K channels) and B2 (32K, 64K).

    WRN-16 and -28 are as in Table 8. Every other depth follows its rule, :func:`branch_blocks`. ``UserError`` for a
    depth other than 6n+4.
    """
    depth, width = map(int, parts(PATTERN, arch))
    blocks = stage_blocks(arch, depth, 6, 4)
    check_width(arch, width)
    return blocks, width, branch_blocks(depth, blocks)


def _branch(channels: tuple[int, ...], blocks: tuple[int, ...], dropout: float, num_classes: int) -> Branch:
    """Stages from ``channels[0]`` to each of the next ``channels`` in turn, and a norm at the end like the trunk's."""
    stages = [_stage(*step, dropout) for step in zip(channels[:-1], channels[1:], blocks, strict=True)]
    branch = Branch([*stages, nn.BatchNorm2d(channels[-1]), nn.ReLU(inplace=True)], channels[-1], num_classes)
    return init_convolutions(branch)


def build(arch: str, num_classes: int, branches: tuple[str, ...], dropout: float = 0.0) -> BranchedModel:
    """WRN ``arch`` with the named branches: B1 forks after conv3_x, B2 after conv2_x (Table 8).

    ``dropout`` is the share of activations dropped in training between the two convolutions of each block.
    """
    blocks, width, side = layout(arch)
    channels = {"B1": (32 * width, 128 * width), "B2": (16 * width, 32 * width, 64 * width)}
    trunk = init_convolutions(WideResNet(blocks, width, num_classes, dropout))
    sides = {name: _branch(channels[name], side[name], dropout, num_classes) for name in branches}
    return BranchedModel(trunk, sides, TAPS)


FAMILY = Family(
    name="Wide ResNet for small images",
    pattern=PATTERN,
    rule="wrn-D-K with D = 6n+4 layers and K times the width",
    examples=("wrn-10-2", "wrn-16-8", "wrn-28-10", "wrn-40-4"),
    image_size=(32, 32),
    num_classes=100,
    branches=lambda arch: tuple(layout(arch)[2]),
    build=build,
    has_dropout=True,
)
