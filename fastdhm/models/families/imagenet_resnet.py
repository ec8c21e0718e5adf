"""torchvision's ImageNet ResNets, unchanged, with the side branches of Table 9.

torchvision is imported only when one is built: its import takes as long as torch's, and most networks do without it.
"""

from typing import TYPE_CHECKING

from torch import nn

from fastdhm.models.base.branched import Branch, BranchedModel
from fastdhm.models.base.initialise import init_convolutions
from fastdhm.models.families.family import Family

if TYPE_CHECKING:
    from torchvision.models.resnet import BasicBlock, Bottleneck

# arch: block class and blocks per stage of the side branches (Table 9); those of the trunks are torchvision's.
# B1 forks after conv4_x (1024 channels), B2 after conv3_x (256, 512), B3 after conv2_x (128, 256, 512).
LAYOUTS = {
    "resnet18": ("BasicBlock", {"B1": (2,), "B2": (1, 2), "B3": (1, 1, 2)}),
    "resnet34": ("BasicBlock", {"B1": (3,), "B2": (3, 2)}),
    "resnet50": ("Bottleneck", {"B1": (3,), "B2": (3, 2)}),
    "resnet101": ("Bottleneck", {"B1": (3,), "B2": (12, 2)}),
    "resnet152": ("Bottleneck", {"B1": (3,), "B2": (18, 2)}),
}
TAPS = {"B1": "layer3", "B2": "layer2", "B3": "layer1"}
PLANES = {"B1": (1024,), "B2": (256, 512), "B3": (128, 256, 512)}
FORK_PLANES = {"B1": 256, "B2": 128, "B3": 64}


def _stage(block: "type[BasicBlock | Bottleneck]", in_channels: int, planes: int, blocks: int) -> nn.Sequential:
    """A stage like torchvision's: the first block halves the resolution and has a projection shortcut."""
    channels = planes * block.expansion
    shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=2, bias=False), nn.BatchNorm2d(channels))
    first = block(in_channels, planes, stride=2, downsample=shortcut)
    return nn.Sequential(first, *(block(channels, planes) for _ in range(blocks - 1)))


def _branch(arch: str, name: str, num_classes: int) -> Branch:
    from torchvision.models import resnet

    block, layout = getattr(resnet, LAYOUTS[arch][0]), LAYOUTS[arch][1]
    planes = (FORK_PLANES[name], *PLANES[name])
    stages = [
        _stage(block, before * block.expansion, after, blocks)
        for before, after, blocks in zip(planes[:-1], planes[1:], layout[name], strict=True)
    ]
    # as torchvision initialises its trunks
    return init_convolutions(Branch(stages, planes[-1] * block.expansion, num_classes))


def build(arch: str, num_classes: int, branches: tuple[str, ...]) -> BranchedModel:
    """torchvision's ``arch`` as the trunk, randomly initialised, with the named branches (Table 9)."""
    from torchvision.models import resnet

    trunk = getattr(resnet, arch)(num_classes=num_classes)
    return BranchedModel(trunk, {name: _branch(arch, name, num_classes) for name in branches}, TAPS)


FAMILY = Family(
    name="ResNet",
    pattern="|".join(LAYOUTS),
    rule="torchvision's " + ", ".join(LAYOUTS),
    examples=tuple(LAYOUTS),
    image_size=(224, 224),
    num_classes=1000,
    branches=lambda arch: tuple(LAYOUTS[arch][1]),
    build=build,
)
