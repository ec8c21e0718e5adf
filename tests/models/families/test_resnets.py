"""ResNets against closed formulas of Tables 6 and 9, torchvision, and published parameter counts."""

import pytest
import torch
import torchvision

from fastdhm import models

PUBLISHED = {  # torchvision's own documentation, 1000 classes
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}
# Table 9: block expansion, then for each branch (channels before it, [(planes, blocks), ...])
TABLE_9 = {
    "resnet18": (
        1, {"B1": (256, [(1024, 2)]), "B2": (128, [(256, 1), (512, 2)]), "B3": (64, [(128, 1), (256, 1), (512, 2)])}
    ),
    "resnet34": (1, {"B1": (256, [(1024, 3)]), "B2": (128, [(256, 3), (512, 2)])}),
    "resnet50": (4, {"B1": (256, [(1024, 3)]), "B2": (128, [(256, 3), (512, 2)])}),
    "resnet101": (4, {"B1": (256, [(1024, 3)]), "B2": (128, [(256, 12), (512, 2)])}),
    "resnet152": (4, {"B1": (256, [(1024, 3)]), "B2": (128, [(256, 18), (512, 2)])}),
}  # fmt: skip
# Table 6: trunk blocks per stage, B2's blocks at 32 and 64 channels, B1's at 128
TABLE_6 = {"resnet32": (5, (5, 3), 5), "resnet110": (18, (9, 9), 18), "resnet1202": (200, (100, 100), 200)}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(arch, num_classes, branches=None):
    with torch.device("meta"):
        return models.build(arch, num_classes, branches)


def conv_bn(before, after, kernel):
    return before * after * kernel**2 + 2 * after


def cifar_stage(before, channels, blocks):
    """Basic blocks with shortcuts that have no parameters."""
    return conv_bn(before, channels, 3) + (2 * blocks - 1) * conv_bn(channels, channels, 3)


def imagenet_stage(expansion, before, planes, blocks):
    """Basic (expansion 1) or bottleneck blocks; the first one projects its shortcut."""
    total, after = 0, planes * expansion
    for b in range(blocks):
        inputs = before if b == 0 else after
        if expansion == 1:
            total += conv_bn(inputs, planes, 3) + conv_bn(planes, planes, 3)
        else:
            total += conv_bn(inputs, planes, 1) + conv_bn(planes, planes, 3) + conv_bn(planes, after, 1)
    return total + conv_bn(before, after, 1)


@pytest.mark.parametrize("arch", TABLE_6)
def test_cifar_resnet_has_the_parameters_of_table_6(arch):
    blocks, b2, b1 = TABLE_6[arch]
    model = on_meta(arch, 100)
    stages = cifar_stage(16, 16, blocks) + cifar_stage(16, 32, blocks) + cifar_stage(32, 64, blocks)
    assert count(model.trunk) == conv_bn(3, 16, 3) + stages + 65 * 100
    assert count(model.branches["B2"]) == cifar_stage(16, 32, b2[0]) + cifar_stage(32, 64, b2[1]) + 65 * 100
    assert count(model.branches["B1"]) == cifar_stage(32, 128, b1) + 129 * 100


@pytest.mark.parametrize(
    ("arch", "millions"),
    [
        ("resnet20", 0.27),
        ("resnet32", 0.46),
        ("resnet56", 0.85),
        ("resnet110", 1.7),
        pytest.param("resnet1202", 19.4, marks=pytest.mark.slow),
    ],
)
def test_cifar_trunk_has_the_published_size(arch, millions):
    """He et al., CVPR 2016, Table 6 (10 classes)."""
    assert round(count(on_meta(arch, 10).trunk) / 1e6, 2 if millions < 1 else 1) == millions


@pytest.mark.parametrize("arch", PUBLISHED)
def test_imagenet_trunk_is_torchvisions(arch):
    trunk = on_meta(arch, 1000).trunk
    reference = getattr(torchvision.models, arch)
    with torch.device("meta"):
        assert list(trunk.state_dict()) == list(reference().state_dict())
    assert type(trunk) is torchvision.models.ResNet
    assert count(trunk) == PUBLISHED[arch]


@pytest.mark.parametrize("arch", TABLE_9)
def test_imagenet_branches_have_the_parameters_of_table_9(arch):
    expansion, branches = TABLE_9[arch]
    model = on_meta(arch, 1000, branches)
    assert set(model.branches) == set(branches)
    for name, (before, stages) in branches.items():
        expected, planes_before = 0, before
        for planes, blocks in stages:
            expected += imagenet_stage(expansion, planes_before * expansion, planes, blocks)
            planes_before = planes
        assert count(model.branches[name]) == expected + (planes_before * expansion + 1) * 1000, name


def test_the_paper_branches_are_the_default_and_the_baseline_has_none():
    assert on_meta("resnet18", 10).branch_names == ("B0", "B1", "B2")
    assert on_meta("resnet18", 10, ()).branch_names == ("B0",)
