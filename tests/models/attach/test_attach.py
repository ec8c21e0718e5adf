"""attach: stages, forks and branches of many networks, what comes back from strip(), and what is refused."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import fastdhm
from fastdhm import models
from fastdhm.models.attach.attach import attach

# network: forks of B1 and B2, blocks of B1 and B2 (the layers of a dense block count), read off their papers' tables
TORCHVISION = {
    "resnet18": (("layer3", "layer2"), ((2,), (1, 1))),
    "resnet50": (("layer3", "layer2"), ((3,), (3, 2))),
    "vgg16_bn": (("features.32", "features.22"), ((3,), (2, 2))),
    "densenet121": (("features.denseblock3", "features.denseblock2"), ((17,), (13, 9))),
    "mobilenet_v2": (("features.13", "features.6"), ((5,), (4, 3))),
    "mobilenet_v3_small": (("features.8", "features.3"), ((4,), (3, 3))),
    "efficientnet_b0": (("features.5", "features.3"), ((6,), (3, 4))),
    "regnet_y_400mf": (("trunk_output.block3", "trunk_output.block2"), ((6,), (3, 3))),
    "convnext_tiny": (("features.5", "features.3"), ((4,), (6, 3))),
}
LARGE = (
    "resnet18",
    "resnet50",
    "vgg16_bn",
    "densenet121",
    "mobilenet_v2",
    "efficientnet_b0",
    "convnext_tiny",
    "regnet_y_400mf",
)
TIMM = (
    "resnet18",
    "densenet121",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "regnety_002",
    "convnext_atto",
    "vgg11_bn",
)


def conv(before, after, stride=1):
    return nn.Conv2d(before, after, 3, stride, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)


def plain(num_classes=5):
    """A network as people write them: four stages, each behind a pooling."""
    layers = [*conv(3, 8), nn.MaxPool2d(2), *conv(8, 8), *conv(8, 8), nn.MaxPool2d(2), *conv(8, 16), *conv(16, 16)]
    layers += [nn.MaxPool2d(2), *conv(16, 16), *conv(16, 16), *conv(16, 16)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, num_classes))


class Functional(nn.Module):
    """Activations and pooling are functions of the forward."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(c, 8, 3, padding=1) for c in (1, 8, 8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.dropout(F.max_pool2d(F.relu(self.conv2(x)), 2), 0.5, self.training)
        return self.fc(F.relu(self.conv3(x), inplace=True).mean((2, 3)))


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def check_whole(network, model, x):
    """What every attached model must do: leave the network alone, run, train every branch, and strip bit for bit."""
    K = model.summary.num_classes
    plain_network = model.strip()
    assert type(plain_network) is type(network)
    assert list(plain_network.state_dict()) == list(network.state_dict())
    assert not any(module._forward_hooks for part in (network, plain_network) for module in part.modules())
    with torch.no_grad():
        logits_MBK = model.eval()(x)
        assert logits_MBK.shape == (len(model.branch_names), len(x), K)
        assert torch.equal(plain_network.eval()(x), logits_MBK[0])
    model.train()(x).square().sum().backward()
    for name, parameter in model.branches.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_get_the_branches_of_the_principles(name):
    forks, blocks = TORCHVISION[name]
    with torch.device("cpu" if "regnet" in name else "meta"):
        network = torchvision.models.get_model(name, weights=None)
        model = attach(network, 10, verbose=False)
    assert tuple(branch.fork for branch in model.summary.branches.values()) == forks
    assert tuple(branch.blocks for branch in model.summary.branches.values()) == blocks
    b1, b2 = model.summary.branches.values()
    assert (b1.width, b2.width) == ("2x as wide", "as wide")
    assert sum(b2.blocks) < sum(b2.trunk_blocks) and b1.blocks == b1.trunk_blocks
    assert model.branches["B1"].fc.in_features == 2 * model.branches["B2"].fc.in_features or name == "densenet121"
    assert list(model.strip().state_dict()) == list(network.state_dict())


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in TORCHVISION])
def test_torchvision_networks_train_and_come_back(name):
    network = torchvision.models.get_model(name, weights=None)
    before = state(network)
    model = attach(network, 10, verbose=False)
    check_whole(network, model, images(2, 3, 64, 64))
    assert all(torch.equal(tensor, before[n]) for n, tensor in network.state_dict().items())
    with torch.device("cpu" if "regnet" in name else "meta"):
        fresh = torchvision.models.get_model(name, weights=None, num_classes=10)
    fresh.load_state_dict(model.strip().state_dict(), strict=True, assign=True)
    assert torch.equal(fresh.eval()(images(2, 3, 64, 64)), model.eval()(images(2, 3, 64, 64))[0])


def test_looking_for_stages_draws_no_random_numbers():
    network, random = plain().train(), torch.get_rng_state()
    attach(network, branches=(), input_size=32, verbose=False)
    assert torch.equal(random, torch.get_rng_state())
    assert not any(t.any() for name, t in network.state_dict().items() if "running_mean" in name)


@pytest.mark.parametrize("name", TIMM)
def test_timm_networks_are_understood(name):
    timm = pytest.importorskip("timm", reason="timm is an optional extra, and not installed")
    with torch.device("meta"):
        network = timm.create_model(name)
        model = attach(network, 7, verbose=False)
        assert model(torch.empty(2, 3, 224, 224)).shape == (3, 2, 7)
    b1, b2 = model.summary.branches.values()
    assert (b1.width, b2.width) == ("2x as wide", "as wide")
    assert b1.blocks == b1.trunk_blocks and sum(b2.blocks) < sum(b2.trunk_blocks)
    assert type(model.strip()) is type(network)


def test_a_timm_network_trains_and_comes_back():
    timm = pytest.importorskip("timm", reason="timm is an optional extra, and not installed")
    network = timm.create_model("mobilenetv3_small_050", num_classes=7)
    check_whole(network, attach(network, verbose=False), images(2, 3, 64, 64))
    model = models.build("timm:mobilenetv3_small_050", 7, ("B2",))
    network.load_state_dict(model.strip().state_dict(), strict=True)


def test_without_timm_its_networks_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="timm is not installed: pip install timm"):
        models.build("timm:resnet18", 10)


def test_resnet50_has_the_branches_of_table_9():
    with torch.device("meta"):
        attached = attach(torchvision.models.resnet50(), verbose=False)
        table = models.build("resnet50", 1000)
    for name in ("B1", "B2"):
        shapes = [[tuple(p.shape) for p in model.branches[name].parameters()] for model in (attached, table)]
        assert sorted(shapes[0]) == sorted(shapes[1])


def test_a_sequential_network(capsys):
    torch.manual_seed(0)
    network = plain()
    model = fastdhm.attach(network, input_size=32)
    told = capsys.readouterr().out
    assert told == f"{model.summary}\n"
    assert "stage 4: 4x4, 16 channels, 3 x Conv2d (17 to 26)" in told
    assert "B1 forks after 16: 3 blocks (trunk 3), 2x as wide" in told
    assert "B2 forks after 9: 1+2 blocks (trunk 2+3), as wide" in told
    check_whole(network, model, images(4, 3, 32, 32))


def test_a_forward_of_functions():
    network = Functional()
    model = attach(network, branches=("B1",), input_size=(1, 28, 28), verbose=False)
    assert model.summary.branches["B1"].fork == "conv2"
    branch, x = model.branches["B1"].eval(), images(2, 8, 14, 14)
    conv3 = next(module for module in branch.modules() if isinstance(module, nn.Conv2d))
    expected = branch.fc(F.relu(conv3(F.max_pool2d(F.relu(x), 2))).mean((2, 3)))
    torch.testing.assert_close(branch(x), expected)
    assert not torch.equal(branch.train()(x), branch(x)), "the dropout between modules is lost"
    check_whole(network, model, images(3, 1, 28, 28))


class Scaled(nn.Module):
    """Parameters and buffers of the forward itself, after the fork, on a map as wide as the fork's, and one activation
    for all."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.scale, self.act, self.fc = nn.Parameter(torch.full((8, 1, 1), 3.0)), nn.ReLU(), nn.Linear(8, 5)
        self.register_buffer("shift", torch.full((1, 8, 1, 1), 0.5))

    def forward(self, x):
        x = self.act(self.conv1(x))
        return self.fc(self.act(self.conv2(x * self.scale - self.shift)).mean((2, 3)))


def test_parameters_of_the_forward_itself_are_copied():
    model = attach(Scaled(), branches=("B1",), input_size=(1, 28, 40), verbose=False)
    told = model.summary.branches["B1"]
    assert (told.width, told.blocks, len(told.kept)) == ("2x as wide", (1,), 1)
    branch = model.branches["B1"]
    own = [parameter for parameter in branch.parameters() if parameter.shape == (8, 1, 1)]
    assert len(own) == 1 and own[0] is not model.trunk.scale
    conv2 = next(module for module in branch.modules() if isinstance(module, nn.Conv2d))
    x = images(2, 8, 14, 20)
    taken = F.relu(x) if told.fork == "conv1" else x
    expected = branch.fc(F.relu(conv2(taken * own[0] - 0.5)).mean((2, 3)))
    torch.testing.assert_close(branch(x), expected)
    check_whole(Scaled(), model, images(3, 1, 28, 40))


class Folding(nn.Module):
    """Cuts the map into patches and joins them again, with sizes of this very batch, around a row of layers."""

    def __init__(self, channels):
        super().__init__()
        self.row = nn.Sequential(nn.Sequential(nn.Conv2d(channels, channels, 1)), nn.Sequential(nn.ReLU()))

    def forward(self, x):
        B, C, H, W = x.shape
        x = self.row(x.reshape(B, C, H * W // 4, 4))
        return x.reshape(B, C, H, W)


def test_a_module_that_reshapes_the_batch_is_repeated_whole():
    network = nn.Sequential(nn.Sequential(*conv(3, 8, 2)), Folding(8), nn.Sequential(*conv(8, 16, 2)), Folding(16))
    network = nn.Sequential(*network, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    model = attach(network, branches=("B1",), input_size=(3, 32, 48), verbose=False)
    check_whole(network, model, images(5, 3, 32, 48))


class DroppingFirst(nn.Module):
    """Begins with what gives back the same tensor in evaluation."""

    def __init__(self, before, after):
        super().__init__()
        self.drop, self.conv, self.skip = (
            nn.Dropout(0.1),
            nn.Conv2d(before, after, 3, 2, 1),
            nn.Conv2d(before, after, 1, 2),
        )

    def forward(self, x):
        x = self.drop(x)
        return self.conv(x) + self.skip(x)


def test_a_block_that_begins_with_dropout_is_in_the_branch_whole():
    network = nn.Sequential(DroppingFirst(3, 4), DroppingFirst(4, 8), DroppingFirst(8, 16), nn.AdaptiveAvgPool2d(1))
    network = nn.Sequential(*network, nn.Flatten(), nn.Linear(16, 5))
    model = attach(network, input_size=32, verbose=False)
    assert [branch.fork for branch in model.summary.branches.values()] == ["1", "0"]
    assert [branch.trunk_blocks for branch in model.summary.branches.values()] == [(1,), (1, 1)]
    check_whole(network, model, images(4, 3, 32, 32))


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
def test_norms_of_a_branch_learn_whatever_the_trunks_do(case):
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


def test_branches_start_anew_and_their_statistics_too():
    torch.manual_seed(0)
    network = plain()
    network(images(4, 3, 32, 32))
    model = attach(network, input_size=32, verbose=False)
    networks = (network, model.trunk)
    trunk = {tensor.data_ptr() for part in networks for tensor in part.state_dict().values()}
    values = {tuple(t.flatten()[:4].tolist()) for t in network.state_dict().values() if t.ndim == 4}
    for name, tensor in model.branches.state_dict().items():
        assert tensor.data_ptr() not in trunk
        assert tensor.ndim < 4 or tuple(tensor.flatten()[:4].tolist()) not in values, name
        assert "running_mean" not in name or not tensor.any()
    assert all(branch.kept == () for branch in model.summary.branches.values())
    model = attach(network, input_size=32, verbose=False, init=lambda m: [p.data.fill_(0.5) for p in m.parameters()])
    assert all((parameter == 0.5).all() for stage in model.branches.values() for parameter in stage.stages.parameters())


def test_layers_without_a_rule_keep_their_values_and_are_named():
    model = attach(torchvision.models.convnext_tiny(), branches=("B2",), verbose=False)
    kept = model.summary.branches["B2"].kept
    assert len(kept) == 5 + 2 and all(name.endswith("layer_scale") for name in kept)
    assert "starts with the trunk's values: stages.0.1.layer_scale" in str(model.summary)


def test_your_own_branches():
    network = plain()
    branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model = attach(network, branches={"mine": ("9", branch)}, input_size=32, verbose=False)
    assert model.branch_names == ("B0", "mine")
    assert "mine forks after 9: your own, 45 parameters" in str(model.summary)
    check_whole(network, model, images(4, 3, 32, 32))


def test_more_branches_and_none():
    assert attach(plain(), branches=("B3", "B1"), input_size=32, verbose=False).branch_names == ("B0", "B1", "B3")
    assert attach(plain(), branches=(), input_size=32, verbose=False).branch_names == ("B0",)


@pytest.mark.parametrize(
    "forks",
    [("encoder.layers.encoder_layer_2", "encoder.layers.encoder_layer_1"), (2, 1), {"B2": 1, "B1": 2}],
    ids=["names", "numbers", "mapping"],
)
def test_a_vit_takes_forks_at_blocks(forks):
    network = torchvision.models.VisionTransformer(32, 8, 4, 2, 16, 32, num_classes=5)
    model = attach(network, forks=forks, input_size=32, verbose=False)
    b1, b2 = model.summary.branches.values()
    assert (b1.fork, b2.fork) == ("encoder.layers.encoder_layer_2", "encoder.layers.encoder_layer_1")
    assert (b1.blocks, b2.blocks, b2.trunk_blocks) == ((1,), (1,), (2,))
    assert b1.width.startswith("as wide (not wider: MultiheadAttention")
    check_whole(network, model, images(2, 3, 32, 32))


def test_a_vit_without_forks_is_refused_with_the_reason():
    network = torchvision.models.VisionTransformer(32, 8, 4, 2, 16, 32, num_classes=5)
    with pytest.raises(ValueError, match=r"no stage was found.*forks=.*from 0 to 3 \(EncoderBlock\)"):
        attach(network, input_size=32)


class Shared(nn.Module):
    """One module in two places."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.twice(self.twice(self.stem(x))).mean((2, 3)))


def test_a_fork_at_a_module_that_runs_twice_moves_up():
    model = attach(Shared(), branches=("B1",), input_size=32, verbose=False)
    assert model.summary.branches["B1"].fork == "stem"
    assert model(images(2, 3, 32, 32)).shape == (2, 2, 5)


class Skipping(nn.Module):
    """A skip connection outside of any module, over the last stage."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.c = (nn.Conv2d(c, 8, 3, s, 1) for c, s in ((3, 2), (8, 2), (8, 2), (8, 1)))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.b(self.a(self.stem(x)))
        return self.fc((x + self.c(x)).mean((2, 3)))


class Twofold(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, x):
        x = self.net(x)
        return x, x


class Cosine(nn.Module):
    """A classifier that is no linear layer."""

    def __init__(self):
        super().__init__()
        self.features, self.weight_KC = plain()[:-1], nn.Parameter(torch.ones(5, 16))

    def forward(self, x):
        return self.features(x) @ self.weight_KC.T


REFUSED = {
    "wrong size": (plain, {"input_size": (1, 32, 32)}, r"does not run on images of 1 channels and 32x32.*input_size="),
    "odd size": (plain, {"input_size": (1, 2, 3, 4)}, r"input_size is \(1, 2, 3, 4\)"),
    "tuple": (Twofold, {}, "returns a tuple in training.*wrap it"),
    "no logits": (lambda: plain()[:-4], {}, r"gives \(2, 16, 4, 4\).*logits \[B, K\]"),
    "no classifier": (Cosine, {"num_classes": 7}, "gives 5 logits, 7 are wanted.*classifier is unknown"),
    "one class": (plain, {"num_classes": 1}, "at least 2 classes"),
    "too few stages": (plain, {"branches": ("B4",)}, "no place for B4: only 4 stages"),
    "odd branch": (plain, {"branches": ("C1",)}, "branch is named 'C1'"),
    "fork unknown": (plain, {"branches": ("B1",), "forks": ("99",)}, "unknown module to fork at in Sequential '99'"),
    "fork missing": (plain, {"forks": {"B1": "9"}}, "forks says nothing of B2"),
    "forks too few": (plain, {"forks": ("9",)}, "1 forks for 2 branches"),
    "fork number": (plain, {"branches": ("B1",), "forks": (70,)}, "fork 70: Sequential has 8 blocks"),
    "fork at the end": (plain, {"branches": ("B1",), "forks": ("28",)}, "'28' is the last feature map or beyond"),
    "fork run twice": (Shared, {"branches": ("B1",), "forks": ("twice",)}, "'twice' runs 2 times"),
    "skip outside of modules": (Skipping, {"branches": ("B1",)}, "joins several paths outside of any module"),
    "fork beside a skip": (Skipping, {"branches": ("B1",), "forks": ("c",)}, "'c' lies beside another path"),
    "own without module": (plain, {"branches": {"mine": "9"}}, "branch mine is '9': give"),
    "own of another size": (plain, {"branches": {"mine": ("9", nn.Linear(3, 3))}}, "branch mine does not run"),
    "own with other classes": (plain, {"branches": {"mine": ("28", nn.Identity())}}, "mine gives .* must give logits"),
    "own and forks": (plain, {"branches": {}, "forks": ("9",)}, "forks= goes with branches by name"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_what_was_found_and_what_to_do(case):
    make, given, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        attach(make(), **{"input_size": 32, **given})


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="32x32 pixels the feature map of ResNet is one pixel after layer4.*64"):
        attach(torchvision.models.resnet18(), input_size=32)


def test_hooks_of_the_user_stay_on_the_trunk_alone():
    network, seen = plain(), []
    network[20].register_forward_hook(lambda *args: seen.append(len(args[2])))
    model = attach(network, input_size=32, verbose=False)
    seen.clear()
    model.eval()(images(4, 3, 32, 32))
    assert seen == [4]
    seen.clear()
    model.strip()(images(4, 3, 32, 32))
    assert seen == [4]


def test_networks_by_name():
    model = models.build("torchvision:mobilenet_v3_small", 10, ["B1"])
    assert model.branch_names == ("B0", "B1")
    assert type(model.trunk) is torchvision.models.MobileNetV3
    twin = copy.deepcopy(model).eval()
    assert torch.equal(twin(images(2, 3, 64, 64)), model.eval()(images(2, 3, 64, 64)))
    assert models.build("torchvision:mobilenet_v3_small", 10, ()).branch_names == ("B0",)
    assert models.inventory("torchvision:regnet_y_400mf").branches.keys() == {"B0", "B1", "B2"}


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (
            "torchvision:mobilenet_v33",
            "torchvision has no network 'mobilenet_v33'; did you mean torchvision:mobilenet_v",
        ),
        ("keras:resnet", "unknown architecture 'keras:resnet'"),
        ("torchvision:vit_b_16", "no stage was found"),
    ],
)
def test_unknown_names_are_refused(arch, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        models.build(arch, 10)
