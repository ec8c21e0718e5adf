"""Every family: block counts of Tables 6 to 10, published sizes, names, image sizes, gradients, dropout."""

import importlib.util
import math

import pytest
import torch
from torch import nn

from fastdhm import models
from fastdhm.models.families.family import branch_blocks

# arch: blocks of the trunk's stages, of B2's, of B1's, and what the classifiers of B0, B1 and B2 take in
TABLES = {
    "resnet32": ((5, 5, 5), (5, 3), (5,), (64, 128, 64)),
    "resnet110": ((18, 18, 18), (9, 9), (18,), (64, 128, 64)),
    "resnet1202": ((200, 200, 200), (100, 100), (200,), (64, 128, 64)),
    "densenet-40-12": ((12, 12, 12), (12, 6), (12,), (448, 304 + 12 * 36, 160 + 18 * 12)),
    "densenet-100-12": ((32, 32, 32), (16, 16), (32,), (1168, 784 + 32 * 36, 400 + 32 * 12)),
    "densenet-100-24": ((32, 32, 32), (16, 16), (32,), (2320, 1552 + 32 * 72, 784 + 32 * 24)),
    "densenet-bc-100-12": ((16, 16, 16), (16, 16), (32,), (342, 150 + 32 * 36, 150 + 16 * 12)),
    "densenet-bc-250-24": ((41, 41, 41), (22, 22), (41,), None),
    "densenet-bc-190-40": ((31, 31, 31), (16, 16), (31,), None),
    "wrn-16-8": ((2, 2, 2), (2, 1), (2,), (512, 1024, 512)),
    "wrn-28-10": ((4, 4, 4), (4, 2), (4,), (640, 1280, 640)),
    "mobilenet": ((1, 2, 2, 6, 2), (4, 2), (2,), (1024, 2048, 1024)),
    "resnet18": ((2, 2, 2, 2), (1, 2), (2,), (512, 1024, 512)),
    "resnet34": ((3, 4, 6, 3), (3, 2), (3,), (512, 1024, 512)),
    "resnet50": ((3, 4, 6, 3), (3, 2), (3,), (2048, 4096, 2048)),
    "resnet101": ((3, 4, 23, 3), (12, 2), (3,), (2048, 4096, 2048)),
    "resnet152": ((3, 8, 36, 3), (18, 2), (3,), (2048, 4096, 2048)),
    # in no table: their rule
    "resnet20": ((3, 3, 3), (3, 2), (3,), (64, 128, 64)),
    "resnet56": ((9, 9, 9), (9, 5), (9,), (64, 128, 64)),
    "resnet164": ((27, 27, 27), (14, 14), (27,), (64, 128, 64)),
    "densenet-40-24": ((12, 12, 12), (12, 6), (12,), (880, 592 + 12 * 72, 304 + 18 * 24)),
    "densenet-bc-100-24": ((16, 16, 16), (16, 16), (32,), None),
    "densenet-bc-40-12": ((6, 6, 6), (6, 3), (6,), None),
    "wrn-10-2": ((1, 1, 1), (1, 1), (1,), (128, 256, 128)),
    "wrn-40-4": ((6, 6, 6), (6, 3), (6,), (256, 512, 256)),
}
# He et al. 2016, Huang et al. 2017, Zagoruyko and Komodakis 2016 (10 classes), Howard et al. 2017 (1000), in millions
PUBLISHED = {
    "densenet-40-12": 1.0, "densenet-100-12": 7.0, "densenet-100-24": 27.2,
    "densenet-bc-100-12": 0.8, "densenet-bc-250-24": 15.3, "densenet-bc-190-40": 25.6,
    "wrn-40-1": 0.6, "wrn-40-2": 2.2, "wrn-40-4": 8.9, "wrn-16-8": 11.0, "wrn-22-8": 17.2, "wrn-28-10": 36.5,
    "mobilenet": 4.2,
}  # fmt: skip
SMALL = ("resnet8", "densenet-10-4", "densenet-bc-16-4", "wrn-10-1", "mobilenet", "resnet18")


def on_meta(arch, num_classes=10, branches=None):
    with torch.device("meta"):
        return models.build(arch, num_classes, branches)


def stages(module):
    return tuple(len(stage) for stage in module if isinstance(stage, nn.Sequential))


def trunk_stages(trunk):
    if hasattr(trunk, "blocks"):
        return stages(trunk.blocks)
    return stages(module for name, module in trunk.named_children() if name.startswith("layer"))


# resnet1202 takes seconds to build; test_resnets counts its parameters
DEEP = {"resnet1202": pytest.mark.slow}


@pytest.mark.parametrize("arch", [pytest.param(arch, marks=DEEP.get(arch, ())) for arch in TABLES])
def test_blocks_are_those_of_the_tables(arch):
    trunk, b2, b1, features = TABLES[arch]
    model = on_meta(arch)
    assert trunk_stages(model.trunk) == trunk
    assert stages(model.branches["B2"].stages) == b2
    assert stages(model.branches["B1"].stages) == b1
    if features:
        last = [
            [m for m in part.modules() if isinstance(m, nn.Linear)][-1]
            for part in (model.trunk, *model.branches.values())
        ]
        assert tuple(layer.in_features for layer in last) == features


@pytest.mark.parametrize(
    ("depth", "blocks", "b2"),
    [(32, 5, (5, 3)), (94, 30, (30, 15)), (100, 32, (16, 16)), (98, 16, (16, 8)), (10, 1, (1, 1))],
)
def test_branches_of_unlisted_depths_follow_the_rule(depth, blocks, b2):
    assert branch_blocks(depth, blocks) == {"B1": (blocks,), "B2": b2}


@pytest.mark.parametrize("arch", PUBLISHED)
def test_trunk_has_the_published_size(arch):
    trunk = on_meta(arch, 1000 if arch == "mobilenet" else 10, ()).trunk
    millions = sum(parameter.numel() for parameter in trunk.parameters()) / 1e6
    assert math.isclose(millions, PUBLISHED[arch], rel_tol=0.02, abs_tol=0.05)


def test_b1_of_a_densenet_grows_three_times_as_fast():
    model = on_meta("densenet-40-12")
    assert {layer.conv.out_channels for layer in model.trunk.layer3} == {12}
    assert {layer.conv.out_channels for layer in model.branches["B2"].stages[2]} == {12}
    assert {layer.conv.out_channels for layer in model.branches["B1"].stages[0]} == {36}


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        ("densenet-10-4", ["conv1.weight", "layer1.0.bn.weight", "layer3.1.conv.weight", "transition2.conv.weight"]),
        ("densenet-bc-16-4", ["layer1.0.conv1.weight", "layer2.1.bn2.running_var", "transition1.bn.bias", "bn.weight"]),
        ("wrn-10-1", ["conv.weight", "layer1.0.bn1.weight", "layer2.0.shortcut.weight", "bn.running_mean", "fc.bias"]),
        ("mobilenet", ["conv_stem.weight", "bn1.weight", "blocks.0.0.conv_dw.weight", "blocks.4.1.bn2.weight"]),
    ],
)  # fmt: skip
def test_trunks_have_the_names_of_the_released_code_or_timm(arch, names):
    assert set(names) <= on_meta(arch).trunk.state_dict().keys()


@pytest.mark.parametrize("size", [(32, 32), (45, 27), (64, 32)], ids=str)
@pytest.mark.parametrize("arch", SMALL)
def test_takes_any_image_size_and_downsamples_every_branch_alike(arch, size):
    """Principle (ii): the feature maps before the poolings have the same sides."""
    model = models.build(arch, 7).eval()
    sides = []
    for pool in [model.trunk.avgpool, *(branch.avgpool for branch in model.branches.values())]:
        pool.register_forward_hook(lambda module, args, output: sides.append(args[0].shape[2:]))
    with torch.no_grad():
        assert model(torch.randn(2, 3, *size)).shape == (3, 2, 7)
    assert len(sides) == 3 and len(set(sides)) == 1


def test_b3_downsamples_like_the_trunk():
    with torch.device("meta"):
        model = models.build("resnet18", 5, ("B3",)).eval()
        sides = []
        for pool in (model.trunk.avgpool, model.branches["B3"].avgpool):
            pool.register_forward_hook(lambda module, args, output: sides.append(args[0].shape[-1]))
        assert model(torch.empty(1, 3, 97, 97)).shape == (2, 1, 5)
    assert sides == [4, 4]


@pytest.mark.parametrize("arch", SMALL)
def test_every_parameter_learns(arch):
    torch.manual_seed(0)
    model = models.build(arch, 5)
    logits_MBK = model(torch.randn(4, 3, 40, 40))
    torch.nn.functional.cross_entropy(logits_MBK.flatten(0, 1), torch.arange(12) % 5).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("arch", SMALL)
def test_activations_neither_vanish_nor_explode_at_the_start(arch):
    torch.manual_seed(0)
    model = models.build(arch, 5)
    outputs = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: outputs.append(output.std().item()))
    with torch.no_grad():
        model(torch.randn(4, 3, 40, 40))
    assert 0.1 < min(outputs) < max(outputs) < 10


@pytest.mark.parametrize("arch", [*SMALL, "torchvision:mobilenet_v3_small"])
def test_a_seed_gives_the_same_trunk_with_any_branches(arch):
    """Baseline, DSL and DHM of one seed are a pair: they begin from the same network."""

    def trunk(build, *given):
        torch.manual_seed(4)
        return build(arch, 5, *given).trunk.state_dict()

    baseline = trunk(models.build, ())
    sets = [("B2",)] if ":" in arch else [("B1",), ("B2",), ("B1", "B2")]  # looking for stages takes a second
    states = [trunk(models.build, names) for names in sets]
    alone = trunk(models.build_alone, "B1")
    states.append({n.removeprefix("trunk."): t for n, t in alone.items() if n.startswith("trunk.")})
    assert all(state.keys() == baseline.keys() for state in states[:-1])
    for state in states:
        assert state and all(torch.equal(tensor, baseline[name]) for name, tensor in state.items())


class TestDropout:
    def test_drops_in_training_only_in_trunk_and_branches(self):
        torch.manual_seed(0)
        model = models.build("wrn-10-1", 5, dropout=0.3)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 0.0
        image_BCHW = torch.randn(4, 3, 16, 16)
        first, second = model(image_BCHW), model(image_BCHW)
        assert (first != second).flatten(1).any(1).all()
        model.eval()
        assert torch.equal(model(image_BCHW), model(image_BCHW))

    def test_its_share_is_the_one_given(self):
        model = on_meta("wrn-10-1"), models.build("wrn-10-1", 5, dropout=0.3)
        shares = [{m.p for m in one.modules() if isinstance(m, nn.Dropout)} for one in model]
        assert shares == [{0.0}, {0.3}]

    def test_adds_no_parameters(self):
        with torch.device("meta"):
            dropped = models.build("wrn-10-1", 10, dropout=0.3)
        assert list(dropped.state_dict()) == list(on_meta("wrn-10-1").state_dict())


@pytest.mark.parametrize("family", models.FAMILIES, ids=lambda family: family.name)
def test_examples_of_a_family_are_its_own(family):
    for arch in family.examples:
        assert models.family_of(arch) is family
        if arch.startswith("timm:") and importlib.util.find_spec("timm") is None:
            continue  # an optional library
        models.check(arch, models.DEFAULT_BRANCHES)


def test_torchvision_keeps_its_names():
    """50 = 6 * 8 + 2 and 152 = 6 * 25 + 2 would be depths of small ResNets too."""
    assert all(models.family_of(f"resnet{depth}").image_size == (224, 224) for depth in (18, 34, 50, 101, 152))
    assert models.family_of("resnet56").image_size == (32, 32)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet33", r"resnet33 has 33 layers: must be 6n\+2, n at least 1. The nearest is resnet32.*use torchvision"),
        ("resnet2", r"resnet2 has 2 layers: must be 6n\+2.*resnet8"),
        ("wrn-27-10", r"wrn-27-10 has 27 layers: must be 6n\+4.*wrn-28-10"),
        ("wrn-4-4", r"must be 6n\+4.*wrn-10-4"),
        ("densenet-41-12", r"must be 3n\+4.*densenet-40-12"),
        ("densenet-bc-42-12", r"must be 6n\+4.*densenet-bc-40-12"),
        ("WRN-28-10", r"unknown architecture 'WRN-28-10'; did you mean 'wrn-28-10'\?.*wrn-D-K with D = 6n\+4"),
        ("wrn-28-0", "unknown architecture"),
        ("resnet032", "unknown architecture.*did you mean 'resnet32'"),
        ("resnet32 ", "unknown architecture.*did you mean 'resnet32'"),
        ("mobilenet_v2", "did you mean 'mobilenet'"),
        ("resnet999998", "resnet999998 has 999,998 layers: must be 2,000 or fewer"),
        (f"resnet{'9' * 5000}", "unknown architecture"),  # Python's int() refuses a text this long
        ("wrn-16-1001", "wrn-16-1001 has width 1,001: must be 1,000 or less"),
        ("densenet-bc-40-2000", "has width 2,000: must be 1,000 or less"),
        ("", "unknown architecture ''.*known: torchvision's resnet18"),
    ],
)
def test_wrong_names_are_refused_with_the_rule(arch, message):
    with pytest.raises(ValueError, match=message):
        models.check(arch)


@pytest.mark.parametrize(
    ("arch", "branches", "classes", "dropout", "message"),
    [
        ("resnet50", ("B3",), 10, 0.0, "unknown branch of resnet50 'B3'.*B1, B2"),
        ("wrn-10-2", ("B3",), 10, 0.0, "unknown branch of wrn-10-2 'B3'.*B1, B2"),
        ("resnet8", None, 1, 0.0, "num_classes is 1.*at least 2"),
        ("wrn-10-2", None, 10, 1.0, r"dropout is 1.0: must be in \[0, 1\)"),
        ("wrn-10-2", None, 10, float("nan"), "dropout is nan"),
        ("resnet32", None, 10, 0.3, "dropout is 0.3: resnet32 has no dropout.*wrn-28-10"),
    ],
)
def test_wrong_arguments_are_refused(arch, branches, classes, dropout, message):
    with pytest.raises(ValueError, match=message):
        models.build(arch, classes, branches, dropout=dropout)
