"""What an optimizer treats alike: decay, and shares of the learning rate by the layer."""

import pytest
from torch import nn

from fastdhm import models
from fastdhm.engine.optim.by_name import make_optimizer
from fastdhm.engine.optim.groups import SHARE, layers, make_groups
from fastdhm.engine.optim.muon import has_torchs_muon
from fastdhm.engine.optim.optimizer import set_learning_rate


def shares(model, decay=0.5, **more):
    """The share of the learning rate of each parameter, by name."""
    groups = make_groups(model, 1e-4, more.get("decay_norm_bias", True), decay)
    of = {id(p): group[SHARE] for group in groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters()}


def test_a_block_is_a_layer_and_so_are_stem_and_classifier():
    found = shares(models.build("resnet18", 10))
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    for n, layer in enumerate(["fc", *reversed(blocks), ("conv1", "bn1")]):
        names = tuple(f"trunk.{part}." for part in ((layer,) if isinstance(layer, str) else layer))
        assert {share for name, share in found.items() if name.startswith(names)} == {0.5**n}, layer
    assert {share for name, share in found.items() if name.startswith("branches.")} == {1.0}


@pytest.mark.parametrize("arch", ["resnet20", "wrn-10-1", "densenet-10-4", "mobilenet"])
def test_depth_rises_through_every_network(arch):
    numbers = list(layers(models.build(arch, 10).trunk).values())
    assert numbers == sorted(numbers) and set(numbers) == set(range(numbers[-1] + 1)) and numbers[-1] >= 4


def test_every_parameter_is_in_one_group_with_its_decay():
    model = models.build("resnet8", 10)
    groups = make_groups(model, 0.1, False, 0.9)
    params = [p for group in groups for p in group["params"]]
    assert len(params) == len(set(params)) == len(list(model.parameters()))
    assert all((group["weight_decay"] == 0.1) == (p.ndim > 1) for group in groups for p in group["params"])


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_each_group_has_its_share_of_a_rate(name):
    if name == "muon" and not has_torchs_muon():
        pytest.importorskip("timm")
    model = models.build("resnet8", 10)
    optimizer = make_optimizer(model, name, lr=0.1, weight_decay=0.1, layer_decay=0.5)
    set_learning_rate(optimizer, 0.2)
    of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = shares(model)
    assert {n: of[id(p)] for n, p in model.named_parameters()} == {n: 0.2 * share for n, share in expected.items()}


def test_without_layer_decay_groups_are_those_of_decay():
    (group,) = make_groups(nn.Linear(2, 2), 0.1, True)
    assert group.keys() == {"params", "weight_decay"}
