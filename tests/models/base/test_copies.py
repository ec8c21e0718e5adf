"""Networks as users give them: wrapped, compiled or with computed weights. Some are accepted, others refused."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from fastdhm import attach

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def net():
    stages = (
        nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in ((3, 4), (4, 4), (4, 8))
    )
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def with_part(index, wrap):
    network = net()
    network[index] = wrap(network[index])
    return network


def compiled_in_place():
    network = net()
    network.compile()
    return network


WRAPPED = {
    "compiled": lambda: torch.compile(net()),
    "compiled in place": compiled_in_place,
    "a part compiled": lambda: with_part(1, torch.compile),
    "DataParallel": lambda: nn.DataParallel(net()),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(net()),
    "averaged and compiled": lambda: torch.compile(torch.optim.swa_utils.AveragedModel(net())),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_a_wrapped_network_is_taken_out_and_nothing_is_compiled(case):
    wrapped = WRAPPED[case]()
    before = dict(torch._dynamo.utils.counters["frames"])
    model = attach(wrapped, input_size=32, verbose=False)
    assert dict(torch._dynamo.utils.counters["frames"]) == before
    plain = model.strip()
    assert type(plain) is nn.Sequential and list(plain.state_dict()) == list(net().state_dict())
    assert torch.equal(plain.eval()(images()), model.eval()(images())[0])


class Masked(nn.Module):
    def forward(self, x, mask):
        return x * mask


class Locked(nn.Sequential):
    def __init__(self):
        super().__init__(*net())
        self.lock = threading.Lock()


HANDED = {
    "scripted": (
        lambda: torch.jit.script(net()),
        "RecursiveScriptModule is scripted.*attach to the network that it was made from",
    ),
    "traced": (lambda: torch.jit.trace(net().eval(), images()), "is scripted or traced"),
    "a part scripted": (lambda: with_part(1, torch.jit.script), "its part 1 is scripted"),
    "a graph": (
        lambda: torch.fx.symbolic_trace(net()),
        "is a graph of functions without blocks: attach to the network",
    ),
    "nothing": (lambda: None, "takes an nn.Module, not a NoneType"),
    "lazy": (lambda: with_part(5, lambda _: nn.LazyLinear(5)), "its part 5 is lazy.*run the network on a batch"),
    "two arguments": (Masked, "does not run on images alone.*'mask'.*Wrap it in a module"),
    "not copied": (Locked, "Locked cannot be copied"),
}


@pytest.mark.parametrize("case", HANDED)
def test_networks_without_python_modules_are_refused(case):
    make, message = HANDED[case]
    with pytest.raises(ValueError, match=message):
        attach(make(), input_size=32, verbose=False)


COMPUTED = {
    "weight_norm": (weight_norm, r"remove_weight_norm\(1.0, 'weight'\)"),
    "spectral_norm": (spectral_norm, r"remove_spectral_norm\(1.0, 'weight'\)"),
    "prune": (lambda layer: prune.l1_unstructured(layer, "weight", 0.3), r"prune.remove\(1.0, 'weight'\)"),
    "parametrized": (parametrizations.weight_norm, r"remove_parametrizations\(1.0, 'weight'\)"),
    "orthogonal": (parametrizations.orthogonal, r"remove_parametrizations\(1.0, 'weight'\)"),
}


@pytest.mark.parametrize("case", COMPUTED)
def test_computed_weights_stay_in_the_trunk_and_are_refused_in_a_branch(case):
    wrap, remedy = COMPUTED[case]
    network = net()
    wrap(network[0][0])
    model = attach(network, input_size=32, verbose=False)
    model(images()).square().sum().backward()  # leaves weights with a history, which a plain copy refuses
    assert torch.equal(model.strip().eval()(images()), model.eval()(images())[0])
    wrap(network[1][0])
    with pytest.raises(ValueError, match=f"branch B2 cannot be made from 1.0: its weight is computed.*{remedy} first"):
        attach(network, branches=("B2",), input_size=32, verbose=False)


def test_a_classifier_with_computed_weights_is_not_replaced():
    network = with_part(5, parametrizations.weight_norm)
    assert attach(network, input_size=32, verbose=False).summary.classifier == "5"
    with pytest.raises(ValueError, match="a classifier of 7 classes cannot be made from 5.*remove_parametrizations"):
        attach(network, 7, input_size=32, verbose=False)


class Keeping(nn.Sequential):
    """Keeps what it computed, as networks do whose maps are looked at later."""

    def forward(self, x):
        self.seen = {"maps": [super().forward(x)]}
        return self.seen["maps"][0]


def test_tensors_kept_from_a_pass_do_not_prevent_a_copy():
    model = attach(Keeping(*net()), input_size=32, verbose=False)
    model(images()).sum().backward()
    assert torch.equal(model.strip().eval()(images()), model.eval()(images())[0])


class Position(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.at = nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self):
        return self.at


class Block(nn.Module):
    """Parts that are called without a tensor, by keyword, and never."""

    def __init__(self, before, after):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after)
        self.position, self.idle = Position(after), nn.Linear(3, 4)

    def forward(self, x):
        return F.relu(self.norm(input=self.conv(x) + self.position()))


def test_parts_called_without_a_tensor_by_keyword_or_never():
    network = nn.Sequential(
        Block(3, 4), Block(4, 4), Block(4, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    model = attach(network, input_size=32, verbose=False)
    assert model.summary.branches["B1"].width == "2x as wide"
    assert model.summary.branches["B1"].kept == ("stages.0.0.position.at",)
    assert model(images()).shape == (3, 2, 5)
