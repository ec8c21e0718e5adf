"""CIFAR ResNets (He et al., CVPR 2016, Section 4.2) with the side branches of Table 6."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastdhm.errors import UserError
from fastdhm.models.base.branched import Branch, BranchedModel
from fastdhm.models.base.initialise import init_convolutions
from fastdhm.models.families.family import WHOLE_NUMBER, Family, branch_blocks, parts, stage_blocks

PATTERN = f"resnet{WHOLE_NUMBER}"
TAPS = {"B1": "layer2", "B2": "layer1"}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: 2x2 average pooling, then zero channels ("option A")."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.extra_channels = stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.stride > 1:
            # ceil_mode: a strided convolution rounds an odd side up, and the shortcut has to match it
            x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        if self.extra_channels:
            x = F.pad(x, (0, 0, 0, 0, 0, self.extra_channels))
        return F.relu(out + x, inplace=True)


def _stage(in_channels: int, channels: int, blocks: int, stride: int = 2) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))


class CifarResNet(nn.Module):
    """A ResNet for images of about 32 pixels: three stages of 16, 32 and 64 channels, ``6 * blocks + 2`` layers."""

    def __init__(self, blocks: int, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def layout(arch: str) -> tuple[int, dict[str, tuple[int, ...]]]:
    """The blocks of each stage of the trunk, and of B1 (128 channels) and B2 (32, 64); ``UserError`` for other depths.

    ResNet-32, -110 and -1202 are as in Table 6. Every other depth follows its rule, :func:`branch_blocks`.
    """
    depth = int(parts(PATTERN, arch)[0])
    try:
        blocks = stage_blocks(arch, depth, 6, 2)
    except UserError as error:
        raise UserError(f"{error}. For large images use torchvision's resnet18, 34, 50, 101 or 152") from None
    return blocks, branch_blocks(depth, blocks)


def build(arch: str, num_classes: int, branches: tuple[str, ...]) -> BranchedModel:
    """CIFAR ResNet ``arch`` with the named branches: B1 forks after conv3_x, B2 after conv2_x (Table 6)."""
    blocks, side = layout(arch)
    b1, b2 = side["B1"], side["B2"]
    makers = {
        "B1": lambda: Branch([_stage(32, 128, b1[0])], 128, num_classes),
        "B2": lambda: Branch([_stage(16, 32, b2[0]), _stage(32, 64, b2[1])], 64, num_classes),
    }
    trunk = init_convolutions(CifarResNet(blocks, num_classes))
    return BranchedModel(trunk, {name: init_convolutions(makers[name]()) for name in branches}, TAPS)


FAMILY = Family(
    name="ResNet for small images",
    pattern=PATTERN,
    rule="resnetN with N = 6n+2 layers, other than torchvision's",
    examples=("resnet8", "resnet14", "resnet20", "resnet32", "resnet56", "resnet110", "resnet1202"),
    image_size=(32, 32),
    num_classes=100,
    branches=lambda arch: tuple(layout(arch)[1]),
    build=build,
)
