"""What of a network is seen in its trace: hooks, forwards of its own, and why there is none."""

import copy
import random

import pytest
import torch
from fused_forward import branched, compare, fused, images, plain_conv
from torch import nn

from fastdhm import models
from fastdhm.engine.fast.fuse import FusedForward, NormAct
from fastdhm.models import Branch, BranchedModel
from fastdhm.models.base.alone import alone
from fastdhm.ops import _extension

pytestmark = [
    pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason())),
    pytest.mark.usefixtures("convolutions_pay"),
]


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        (lambda x: x if x.sum() > 0 else -x, "cannot be traced"),
        (lambda x: x * torch.rand(1, dtype=torch.float64), "draws random numbers"),
    ],
    ids=["control-flow", "random"],
)
def test_what_cannot_be_traced_runs_as_it_is(inside, reason):
    torch.manual_seed(0)
    model = branched(inside)
    forward = compare(model, images(8))
    assert reason in forward.why_not()
    assert forward.describe(("B1",)).startswith("no fused ops (its forward ")


def test_a_branch_may_leave_from_a_norm():
    """The hook that taps a module sees it although the tracer does not enter it, and its norm is then not fused with a
    relu that the branch does not see."""
    torch.manual_seed(0)
    forward = compare(branched(nn.Identity()), images(8))
    assert forward.why_not() is None
    assert [norm.relu for norm in fused(forward, NormAct)] == [False]


@pytest.mark.parametrize("part", ["0", "1", "2"], ids=["conv", "norm", "relu"])
def test_hooks_of_a_part_are_called_with_tensors(part):
    """Also those that come after the trace."""
    torch.manual_seed(0)
    model = branched(nn.Sequential(plain_conv(), nn.BatchNorm2d(8), nn.ReLU())).double()
    forward, plain = FusedForward(model), copy.deepcopy(model)
    seen = []
    for network, run in ((model, forward), (plain, plain)):
        run(images(8))
        module, outputs, gradients = network.trunk.inside.get_submodule(part), [], []
        module.register_forward_hook(lambda _, args, y, outputs=outputs: outputs.append(y.detach()) or y + 2 * y**2)
        module.register_full_backward_hook(lambda _, x, y, gradients=gradients: gradients.append(y[0]))
        logits_ABK = run(images(8))
        logits_ABK.square().sum().backward()
        seen.append((outputs, gradients, logits_ABK))
    assert len(seen[0][0]) == len(seen[0][1]) == 1
    torch.testing.assert_close(*seen)


def test_a_hook_around_a_branch_leaves_the_model_as_it_is():
    torch.manual_seed(0)
    model, shapes = models.build("resnet8", 4).double(), []
    model.trunk.register_forward_hook(lambda _, args, output: shapes.append(tuple(output.shape)))
    forward = compare(model, images(8))
    assert "trunk has hooks" in forward.why_not() and shapes == [(3, 4), (3, 4)]


def test_a_forward_of_a_modules_own_is_called():
    torch.manual_seed(0)
    model = models.build("resnet8", 4).double()
    forward = FusedForward(model)
    conv, before = model.trunk.layer1[0].conv1, forward(images(8))
    conv.forward = lambda x: 2 * nn.Conv2d.forward(conv, x)
    model.trunk.layer1[0].bn1.eval()  # in training the norm takes the factor out again
    torch.testing.assert_close(forward(images(8)), model(images(8)))
    assert not torch.equal(forward(images(8)), before)


def test_a_failed_trace_gives_its_random_numbers_back():
    torch.manual_seed(0)
    random.seed(0)

    def inside(x):
        torch.rand(()), random.random()
        return x if x.sum() > 0 else -x

    forward = FusedForward(branched(inside))
    before = torch.get_rng_state(), random.getstate()
    assert "cannot be traced" in forward.why_not()
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def test_each_set_of_branches_has_its_own_reason():
    model = branched(nn.Identity())
    model.branches["B1"].stages.append(Inside(lambda x: x if x.sum() > 0 else -x))
    forward = FusedForward(model)
    assert forward.describe(("B1",)).startswith("no fused ops (its forward cannot be traced")
    assert forward.describe(()) == "norms and convolutions by fused ops"
    assert forward.why_not(("B1",)) is not None


class Inside(nn.Module):
    """A module that is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def leaf_tapped():
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), plain_conv(), nn.AdaptiveAvgPool2d(1)]
    trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4))
    return BranchedModel(trunk, {"B1": Branch([nn.Conv2d(8, 4, 3)], 4, 4)}, {"B1": "3"})


@pytest.mark.parametrize("only", [False, True], ids=["with-its-trunk", "alone"])
def test_a_branch_may_leave_from_a_pool_and_keeps_nothing(only):
    torch.manual_seed(0)
    model = leaf_tapped()
    model = (alone(model, "B1", (3, 12, 12)) if only else model).double()
    forward = compare(model, images(12))
    assert forward.why_not() is None and not model._features


def test_a_pass_that_fails_keeps_no_features():
    model = branched(nn.Identity())
    forward = FusedForward(model)
    assert forward.why_not() is None
    model._features["bn"] = torch.ones(1)  # as a module leaves that is called as a whole
    with pytest.raises(RuntimeError):
        forward(images(8)[:, :2])
    assert not model._features
