"""DenseNets for small images (Huang et al., CVPR 2017) with the side branches of Table 7.

Modules are named as in the authors' released code. Its stem without bottlenecks has 16 channels (Table 7 says 2k).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdhm.models.base.branched import Branch, BranchedModel
from fastdhm.models.base.initialise import init_convolutions
from fastdhm.models.families.family import WHOLE_NUMBER, Family, branch_blocks, check_width, parts, stage_blocks

PATTERN = f"densenet(-bc)?-{WHOLE_NUMBER}-{WHOLE_NUMBER}"
TAPS = {"B1": "transition2", "B2": "transition1"}
B1_WIDTH = 3  # each layer of B1 adds three times as many channels
# The DenseNet-BCs of the released code that do not follow the rule `branch_blocks`: depth -> layers of B1, B2
LISTED_BC = {100: {"B1": (32,), "B2": (16, 16)}, 250: {"B1": (41,), "B2": (22, 22)}}


class Layout(NamedTuple):
    """What a name says: layers per dense block, channels that a layer adds, bottlenecks, and layers of the branches."""

    layers: int
    growth: int
    bc: bool
    side: dict[str, tuple[int, ...]]


def layout(arch: str) -> Layout:
    """Read a name: ``densenet-D-K`` has D layers and growth K; ``densenet-bc-D-K`` has bottlenecks and compression too.

    The branches are as in Table 7 and the released code, for any growth. At a depth that these do not list, they follow
    the rule :func:`branch_blocks`. ``UserError`` for a depth other than 3n+4, or 6n+4 with bottlenecks.
    """
    dashed, *numbers = parts(PATTERN, arch)
    bc, (depth, growth) = bool(dashed), map(int, numbers)
    layers = stage_blocks(arch, depth, 6 if bc else 3, 4)
    check_width(arch, growth)
    side = branch_blocks(depth, layers)
    return Layout(layers, growth, bc, LISTED_BC.get(depth, side) if bc else side)


class DenseLayer(nn.Module):
    """A pre-activated 3x3 convolution; its ``growth`` channels are appended to its input."""

    def __init__(self, in_channels: int, growth: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(F.relu(self.bn(x), inplace=True))), 1)


class BottleneckLayer(nn.Module):
    """A :class:`DenseLayer` with a pre-activated 1x1 convolution to ``4 * growth`` channels before it."""

    def __init__(self, in_channels: int, growth: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x), inplace=True))
        return torch.cat((x, self.conv2(F.relu(self.bn2(out), inplace=True))), 1)


class Transition(nn.Module):
    """A pre-activated 1x1 convolution that keeps all channels (half with ``bc``), and 2x2 average pooling."""

    def __init__(self, in_channels: int, bc: bool):
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.out_channels = in_channels // 2 if bc else in_channels
        self.conv = nn.Conv2d(in_channels, self.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x), inplace=True)), 2)


def _dense_block(in_channels: int, growth: int, layers: int, bc: bool) -> nn.Sequential:
    layer = BottleneckLayer if bc else DenseLayer
    return nn.Sequential(*(layer(in_channels + growth * i, growth) for i in range(layers)))


class DenseNet(nn.Module):
    """A DenseNet for images of about 32 pixels: three dense blocks of ``layers`` layers, with transitions between."""

    def __init__(self, layers: int, growth: int, bc: bool, num_classes: int):
        super().__init__()
        stem, added = 2 * growth if bc else 16, growth * layers
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.layer1 = _dense_block(stem, growth, layers, bc)
        self.transition1 = Transition(stem + added, bc)
        self.layer2 = _dense_block(self.transition1.out_channels, growth, layers, bc)
        self.transition2 = Transition(self.transition1.out_channels + added, bc)
        self.layer3 = _dense_block(self.transition2.out_channels, growth, layers, bc)
        self.bn = nn.BatchNorm2d(self.transition2.out_channels + added)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.bn.num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition1(self.layer1(self.conv1(x)))
        x = self.layer3(self.transition2(self.layer2(x)))
        return self.fc(self.avgpool(F.relu(self.bn(x), inplace=True)).flatten(1))


def _branch(in_channels: int, growth: int, layers: tuple[int, ...], bc: bool, num_classes: int) -> Branch:
    """Dense blocks of ``layers`` layers with transitions between them, and a norm at the end like the trunk's."""
    stages: list[nn.Module] = []
    for count in layers:
        if stages:
            transition = Transition(in_channels, bc)
            stages.append(transition)
            in_channels = transition.out_channels
        stages.append(_dense_block(in_channels, growth, count, bc))
        in_channels += growth * count
    branch = Branch([*stages, nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)], in_channels, num_classes)
    return init_convolutions(branch)


def build(arch: str, num_classes: int, branches: tuple[str, ...]) -> BranchedModel:
    """DenseNet ``arch`` with the named branches: B1 forks after the second transition, B2 after the first (Table 7)."""
    layers, growth, bc, side = layout(arch)
    trunk = init_convolutions(DenseNet(layers, growth, bc, num_classes))
    fork = {name: getattr(trunk, tap).out_channels for name, tap in TAPS.items()}
    grows = {"B1": B1_WIDTH * growth, "B2": growth}
    sides = {name: _branch(fork[name], grows[name], side[name], bc, num_classes) for name in branches}
    return BranchedModel(trunk, sides, TAPS)


FAMILY = Family(
    name="DenseNet for small images",
    pattern=PATTERN,
    rule="densenet-D-K with D = 3n+4 layers and growth K, or densenet-bc-D-K with D = 6n+4",
    examples=(
        "densenet-40-12", "densenet-100-12", "densenet-100-24",
        "densenet-bc-100-12", "densenet-bc-250-24", "densenet-bc-190-40",
    ),
    image_size=(32, 32),
    num_classes=100,
    branches=lambda arch: tuple(layout(arch).side),
    build=build,
)  # fmt: skip
