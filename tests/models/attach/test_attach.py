"""attach: branches of many networks, what comes back from strip(), and what is refused."""

import pytest
import torch
import torchvision
from attached import Shared, check_whole, images, plain
from torch import nn

from fastdhm import models
from fastdhm.models.attach.attach import attach

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


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
)
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


def test_a_timm_network_trains_and_comes_back():
    timm = pytest.importorskip("timm", reason="timm is an optional extra, and not installed")
    network = timm.create_model("mobilenetv3_small_050", num_classes=7)
    check_whole(network, attach(network, verbose=False), images(2, 3, 64, 64))
    model = models.build("timm:mobilenetv3_small_050", 7, ("B2",))
    network.load_state_dict(model.strip().state_dict(), strict=True)


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
    """A network whose classifier is not a linear layer."""

    def __init__(self):
        super().__init__()
        self.features, self.weight_KC = plain()[:-1], nn.Parameter(torch.ones(5, 16))

    def forward(self, x):
        return self.features(x) @ self.weight_KC.T


REFUSED = {
    "wrong size": (plain, {"input_size": (1, 32, 32)}, r"does not run on images of shape \(1, 32, 32\).*input_size="),
    "odd size": (plain, {"input_size": (1, 2, 3, 4)}, r"input_size is \(1, 2, 3, 4\)"),
    "tuple": (Twofold, {}, "returns a tuple in training.*wrap it"),
    "no logits": (lambda: plain()[:-4], {}, r"returns \(2, 16, 4, 4\).*logits \[B, K\]"),
    "no classifier": (Cosine, {"num_classes": 7}, "gives 5 logits, not 7, and its classifier cannot be replaced"),
    "one class": (plain, {"num_classes": 1}, "at least 2 classes"),
    "too few stages": (plain, {"branches": ("B4",)}, "no place for B4: only 4 stages"),
    "odd branch": (plain, {"branches": ("C1",)}, "branch name is 'C1': must be B1"),
    "fork unknown": (plain, {"branches": ("B1",), "forks": ("99",)}, "unknown module to fork at in Sequential '99'"),
    "fork missing": (plain, {"forks": {"B1": "9"}}, "forks has no B2"),
    "forks too few": (plain, {"forks": ("9",)}, "the length of forks is 1"),
    "fork number": (plain, {"branches": ("B1",), "forks": (70,)}, "fork is 70: must be less than 8"),
    "fork at the end": (plain, {"branches": ("B1",), "forks": ("28",)}, "'28', at or after the last feature map"),
    "fork run twice": (Shared, {"branches": ("B1",), "forks": ("twice",)}, "fork is 'twice', which runs 2 times"),
    "skip outside of modules": (Skipping, {"branches": ("B1",)}, "joins paths outside of all modules"),
    "fork beside a skip": (Skipping, {"branches": ("B1",), "forks": ("c",)}, "fork is 'c': another path"),
    "own without module": (plain, {"branches": {"mine": "9"}}, "branch mine is '9': give"),
    "own of another size": (plain, {"branches": {"mine": ("9", nn.Linear(3, 3))}}, "branch mine does not run"),
    "own with other classes": (plain, {"branches": {"mine": ("28", nn.Identity())}}, "mine gives .*: must give logits"),
    "own and forks": (plain, {"branches": {}, "forks": ("9",)}, "forks= is for branches given by name"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_what_was_found_and_what_to_do(case):
    make, given, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        attach(make(), **{"input_size": 32, **given})


def test_hooks_of_the_user_stay_on_the_trunk_only():
    network, seen = plain(), []
    network[20].register_forward_hook(lambda *args: seen.append(len(args[2])))
    model = attach(network, input_size=32, verbose=False)
    seen.clear()
    model.eval()(images(4, 3, 32, 32))
    assert seen == [4]
    seen.clear()
    model.strip()(images(4, 3, 32, 32))
    assert seen == [4]
