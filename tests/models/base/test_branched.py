"""Branched models: shapes, taps, active branches, stripping."""

import copy

import pytest
import torch
from torch import nn

from fastdhm import models


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return models.build("resnet8", 10)


@pytest.fixture
def image_BCHW():
    return torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def test_logits_are_stacked_main_branch_first(model, image_BCHW):
    logits_MBK = model.eval()(image_BCHW)
    assert logits_MBK.shape == (3, 4, 10)
    assert model.branch_names == ("B0", "B1", "B2")
    features = {}
    model.trunk.layer2.register_forward_hook(lambda *args: features.update(B1=args[2])).remove  # noqa: B018
    assert torch.equal(logits_MBK[0], model.trunk(image_BCHW))
    assert torch.equal(logits_MBK[1], model.branches["B1"](features["B1"]))


@pytest.mark.parametrize("active", [(), ("B1",), ("B2",), ("B2", "B1")], ids=str)
def test_only_active_branches_are_computed(model, image_BCHW, active):
    model.eval()
    whole, part = model(image_BCHW), model(image_BCHW, active)
    rows = [0] + [model.branch_names.index(name) for name in active]
    assert torch.equal(part, whole[rows])


def test_an_inactive_branch_is_not_run(image_BCHW):
    model = models.build("resnet8", 10)
    model.branches["B1"].register_forward_hook(lambda *_: pytest.fail("B1 ran"))
    model(image_BCHW, ("B2",))


def test_unknown_active_branch_is_named(model, image_BCHW):
    with pytest.raises(ValueError, match="'B9'.*B1, B2"):
        model(image_BCHW, ("B9",))


def test_no_feature_map_outlives_the_pass(model, image_BCHW):
    model(image_BCHW)
    assert not model._features
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5, 28, 28))
    assert not model._features


@pytest.mark.parametrize("arch", ["resnet8", "resnet18", "densenet-10-4", "densenet-bc-10-4", "wrn-10-1", "mobilenet"])
def test_strip_is_the_plain_network_bit_for_bit(arch, image_BCHW):
    model = models.build(arch, 10).eval()
    plain = model.strip()
    assert type(plain) is type(model.trunk)
    assert not any(module._forward_hooks for module in plain.modules())
    assert list(plain.state_dict()) == list(model.trunk.state_dict())
    assert torch.equal(plain(image_BCHW), model(image_BCHW)[0])
    assert next(plain.parameters()).data_ptr() != next(model.trunk.parameters()).data_ptr()
    assert len(model(image_BCHW)) == 3, "stripping took the branches away from the model itself"


def test_strip_keeps_hooks_that_are_not_ours(image_BCHW):
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    trunk[0].register_forward_hook(lambda *args: -args[2])
    branch = models.Branch([nn.Identity()], 4, 5)
    model = models.BranchedModel(trunk, {"B1": branch}, {"B1": "0"}).eval()
    assert torch.equal(model.strip()(image_BCHW), trunk(image_BCHW))


def test_deep_copies_are_independent(model, image_BCHW):
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        twin.trunk.conv1.weight.mul_(2)
    assert not torch.equal(twin(image_BCHW), model.eval()(image_BCHW))


def test_gradients_of_every_branch_reach_the_shared_stem(image_BCHW):
    model = models.build("resnet8", 10)
    for m in range(3):
        model.zero_grad()
        model(image_BCHW)[m].sum().backward()
        assert model.trunk.conv1.weight.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet8", "densenet-10-4", "densenet-bc-10-4", "wrn-10-1", "mobilenet"])
def test_every_family_is_captured_as_one_graph_in_training(arch, image_BCHW):
    model = models.build(arch, 10)
    captured = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(captured(image_BCHW), model(image_BCHW))
