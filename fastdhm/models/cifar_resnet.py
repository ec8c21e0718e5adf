"""CIFAR ResNets (He et al., CVPR 2016, Section 4.2) with the side branches of Table 6."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastdhm.models.branched import Branch, BranchedModel

# arch: trunk blocks per stage, then the blocks of B2 (32, 64 channels) and of B1 (128 channels); Table 6.
# ResNets 8, 14 and 20 are not in the paper: their branches follow the table's rule (B2's last stage is half as deep).
LAYOUTS = {
    "resnet8": (1, (1, 1), (1,)),
    "resnet14": (2, (2, 1), (2,)),
    "resnet20": (3, (3, 2), (3,)),
    "resnet32": (5, (5, 3), (5,)),
    "resnet110": (18, (9, 9), (18,)),
    "resnet1202": (200, (100, 100), (200,)),
}


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


def build(arch: str, num_classes: int, branches: tuple[str, ...]) -> BranchedModel:
    """CIFAR ResNet ``arch`` with the named branches: B1 forks after conv3_x, B2 after conv2_x (Table 6)."""
    blocks, b2, b1 = LAYOUTS[arch]
    makers = {
        "B1": lambda: Branch([_stage(32, 128, b1[0])], 128, num_classes),
        "B2": lambda: Branch([_stage(16, 32, b2[0]), _stage(32, 64, b2[1])], 64, num_classes),
    }
    model = BranchedModel(
        CifarResNet(blocks, num_classes),
        {name: makers[name]() for name in branches},
        {"B1": "layer2", "B2": "layer1"},
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
