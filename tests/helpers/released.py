"""The authors' released networks (``d-li14/DHM``) in other words: their modules' names, their forward, their pooling.

Their pooling windows are fixed: images have 32 pixels, or 224 for ImageNet.
"""

import re

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck


def conv3(before, after, stride=1):
    return nn.Conv2d(before, after, 3, stride, 1, bias=False)


def bn_relu(norm, x):
    return F.relu(norm(x))


class PaddedBlock(nn.Module):
    """CIFAR ResNet: the shortcut is averaged and padded with channels of zeros."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1, self.bn1 = conv3(before, after, stride), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = conv3(after, after), nn.BatchNorm2d(after)

    def forward(self, x):
        out = self.bn2(self.conv2(bn_relu(self.bn1, self.conv1(x))))
        if out.shape != x.shape:
            x = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 0, out.shape[1] - x.shape[1]))
        return F.relu(out + x)


class WideBlock(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), conv3(before, after, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(after), conv3(after, after)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else None

    def forward(self, x):
        active = bn_relu(self.bn1, x)
        out = self.conv2(bn_relu(self.bn2, self.conv1(active)))
        return out + (x if self.shortcut is None else self.shortcut(active))


class DenseLayer(nn.Module):
    def __init__(self, before, growth):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(before), conv3(before, growth)

    def forward(self, x):
        return torch.cat((x, self.conv(bn_relu(self.bn, x))), 1)


class DenseBottleneck(nn.Module):
    def __init__(self, before, growth):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, 4 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), conv3(4 * growth, growth)

    def forward(self, x):
        return torch.cat((x, self.conv2(bn_relu(self.bn2, self.conv1(bn_relu(self.bn1, x))))), 1)


class Transition(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(before), nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x):
        return F.avg_pool2d(self.conv(bn_relu(self.bn, x)), 2)


class Released(nn.Module):
    """``paths``: head ("" is the trunk) -> its modules in turn; each head's first takes what ``forks`` names."""

    def __init__(self, pool):
        super().__init__()
        self.pool, self.paths, self.forks = pool, {}, {}

    def stem(self, x):
        raise NotImplementedError

    def head(self, head, fork, modules, num_classes):
        suffix = f"_head{head}" if head else ""
        self.paths[head], self.forks[head] = [f"{name}{suffix}" for name in modules], fork
        for name, module in modules.items():
            self.add_module(f"{name}{suffix}", module)
        last = [p for module in modules.values() for p in module.parameters() if p.ndim == 4]
        features = modules["bn"].num_features if "bn" in modules else last[-1].shape[0]
        self.add_module(f"fc{suffix}", nn.Linear(features, num_classes))

    def forward(self, x):
        seen = {"": self.stem(x)}
        logits = []
        for head in ("", "1", "2"):
            x = seen[self.forks[head]]
            for name in self.paths[head]:
                x = getattr(self, name)(x)
                x = F.relu(x) if name.startswith("bn") else x
                seen[name] = x
            suffix = f"_head{head}" if head else ""
            logits.append(self.get_submodule(f"fc{suffix}")(F.avg_pool2d(x, self.pool, 1).flatten(1)))
        return tuple(logits)


def rows(block, before, channels, counts, strides, names):
    """Residual stages by name."""
    stages = {}
    for name, after, count, stride in zip(names, channels, counts, strides, strict=True):
        stages[name] = nn.Sequential(*(block(after if i else before, after, 1 if i else stride) for i in range(count)))
        before = after
    return stages


class CifarResNet(Released):
    def __init__(self, blocks, head2, head1, num_classes):
        super().__init__(8)
        self.conv1, self.bn1 = conv3(3, 16), nn.BatchNorm2d(16)
        layers = ("layer1", "layer2", "layer3")
        self.head("", "", rows(PaddedBlock, 16, (16, 32, 64), (blocks,) * 3, (1, 2, 2), layers), num_classes)
        self.head("2", "layer1", rows(PaddedBlock, 16, (32, 64), head2, (2, 2), layers[1:]), num_classes)
        self.head("1", "layer2", rows(PaddedBlock, 32, (128,), head1, (2,), layers[2:]), num_classes)

    def stem(self, x):
        return bn_relu(self.bn1, self.conv1(x))


class WideResNet(Released):
    def __init__(self, blocks, head2, head1, width, num_classes):
        super().__init__(8)
        self.conv = conv3(3, 16)

        def side(before, channels, counts, strides, names):
            stages = rows(WideBlock, before, [width * c for c in channels], counts, strides, names)
            return {**stages, "bn": nn.BatchNorm2d(width * channels[-1])}

        layers = ("layer1", "layer2", "layer3")
        self.head("", "", side(16, (16, 32, 64), (blocks,) * 3, (1, 2, 2), layers), num_classes)
        self.head("2", "layer1", side(16 * width, (32, 64), head2, (2, 2), layers[1:]), num_classes)
        self.head("1", "layer2", side(32 * width, (128,), head1, (2,), layers[2:]), num_classes)

    def stem(self, x):
        return self.conv(x)


class DenseNet(Released):
    def __init__(self, layers, head2, head1, growth, bc, num_classes):
        super().__init__(8)
        stem = 2 * growth if bc else 16
        self.conv1 = conv3(3, stem)

        def side(before, counts, grow, first):
            modules = {}
            for number, count in enumerate(counts, first):
                if modules:
                    after = before // 2 if bc else before
                    modules[f"transition{number - 1}"] = Transition(before, after)
                    before = after
                layer = DenseBottleneck if bc else DenseLayer
                modules[f"layer{number}"] = nn.Sequential(*(layer(before + i * grow, grow) for i in range(count)))
                before += count * grow
            return {**modules, "bn": nn.BatchNorm2d(before)}

        self.head("", "", side(stem, (layers,) * 3, growth, 1), num_classes)
        outs = [self.get_submodule(f"transition{n}").conv.out_channels for n in (1, 2)]
        self.head("2", "transition1", side(outs[0], head2, growth, 2), num_classes)
        self.head("1", "transition2", side(outs[1], head1, 3 * growth, 3), num_classes)

    def stem(self, x):
        return self.conv1(x)


class ImageNetResNet(Released):
    def __init__(self, block, counts, head2, head1, num_classes):
        super().__init__(7)
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)

        def side(before, planes, counts, names):
            stages, before = {}, before * (block.expansion if names[0] != "layer1" else 1)
            for name, width, count in zip(names, planes, counts, strict=True):
                after, stride = width * block.expansion, 1 if name == "layer1" else 2
                short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
                first = block(before, width, stride, short if stride > 1 or before != after else None)
                stages[name] = nn.Sequential(first, *(block(after, width) for _ in range(count - 1)))
                before = after
            return stages

        layers = ("layer1", "layer2", "layer3", "layer4")
        self.head("", "", side(64, (64, 128, 256, 512), counts, layers), num_classes)
        self.head("2", "layer2", side(128, (256, 512), head2, layers[2:]), num_classes)
        self.head("1", "layer3", side(256, (1024,), head1, layers[3:]), num_classes)

    def stem(self, x):
        return F.max_pool2d(bn_relu(self.bn1, self.conv1(x)), 3, 2, 1)


# what the released code constructs: blocks of the trunk's stages, of B2's, of B1's
IMAGENET = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), (1, 2), (2,)),
    "resnet34": (BasicBlock, (3, 4, 6, 3), (3, 2), (3,)),
    "resnet50": (Bottleneck, (3, 4, 6, 3), (3, 2), (3,)),
    "resnet101": (Bottleneck, (3, 4, 23, 3), (12, 2), (3,)),
    "resnet152": (Bottleneck, (3, 8, 36, 3), (18, 2), (3,)),
}
CIFAR = {"resnet32": ((5, 3), (5,)), "resnet110": ((9, 9), (18,)), "resnet1202": ((100, 100), (200,))}
WIDE = {"wrn-16-8": ((2, 1), (2,)), "wrn-28-10": ((4, 2), (4,))}
DENSE = {
    "densenet-40-12": ((12, 6), (12,)), "densenet-100-12": ((16, 16), (32,)), "densenet-100-24": ((16, 16), (32,)),
    "densenet-bc-100-12": ((16, 16), (32,)), "densenet-bc-250-24": ((22, 22), (41,)),
    "densenet-bc-190-40": ((16, 16), (31,)),
}  # fmt: skip
ALL = (*IMAGENET, *CIFAR, *WIDE, *DENSE)
# the same at depths that a test can afford
SMALL = {"resnet8": ((1, 1), (1,)), "wrn-10-1": ((1, 1), (1,)), "densenet-10-4": ((2, 1), (2,))}
SMALL["densenet-bc-16-4"] = SMALL["densenet-10-4"]


def released(arch, num_classes):
    """The released code's network that we call ``arch``, randomly initialised."""
    if arch in IMAGENET:
        return ImageNetResNet(*IMAGENET[arch], num_classes)
    head2, head1 = {**CIFAR, **WIDE, **DENSE, **SMALL}[arch]
    depth, *more = map(int, re.findall(r"\d+", arch))
    if arch.startswith("resnet"):
        return CifarResNet((depth - 2) // 6, head2, head1, num_classes)
    if arch.startswith("wrn"):
        return WideResNet((depth - 4) // 6, head2, head1, more[0], num_classes)
    bc = "-bc-" in arch
    return DenseNet((depth - 4) // (6 if bc else 3), head2, head1, more[0], bc, num_classes)


def trained(arch, num_classes, seed=0):
    """The same in evaluation, with statistics and biases that are not those of a fresh network."""
    torch.manual_seed(seed)
    model = released(arch, num_classes)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5) if "var" in name or "weight" in name else tensor.normal_(0, 0.2)
    return model.eval()
