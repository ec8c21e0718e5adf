"""Parameters and multiply-adds against torchvision's, published ones, and torch's own counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model_weights

from fastdhm import models


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnet152"])
def test_trunk_costs_what_torchvision_says(arch):
    meta = get_model_weights(arch).IMAGENET1K_V1.meta
    trunk = models.inventory(arch).branches["B0"]
    assert trunk.params == meta["num_params"]
    assert round(trunk.macs / 1e9, 3) == meta["_ops"]


def test_mobilenet_costs_what_is_published():
    """Howard et al. 2017, Table 4: 569 million multiply-adds, 4.2 million parameters."""
    trunk = models.inventory("mobilenet", 1000, 224).branches["B0"]
    assert round(trunk.macs / 1e6) == 569
    assert round(trunk.params / 1e6, 1) == 4.2


def test_a_dhm_step_of_resnet32_costs_278_percent():
    cost = models.inventory("resnet32", 100, 32)
    assert round(cost.branches["B0"].macs / 1e9, 3) == 0.069
    assert round(sum(part.macs for part in cost.branches.values()) / 1e9, 3) == 0.192
    assert round(cost.step_ratio, 2) == 2.78


@pytest.mark.parametrize("arch", ["resnet8", "densenet-10-4", "densenet-bc-10-4", "wrn-10-1", "mobilenet", "resnet18"])
def test_torch_counts_the_same(arch):
    cost = models.inventory(arch, 7, (64, 48))
    with torch.device("meta"):
        model = models.build(arch, 7).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 64, 48))
    assert 2 * sum(part.macs for part in cost.branches.values()) == counter.get_total_flops()
    assert sum(part.params for part in cost.branches.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("arch", ["resnet8", "densenet-10-4", "mobilenet", "resnet18"])
def test_a_branch_alone_costs_what_its_network_does(arch):
    costs = models.costs_alone(arch, 7, (64, 48), ("B0", "B1", "B2"))
    for name, cost in costs.items():
        network = models.one_network(models.build(arch, 7), name, (3, 64, 48)).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, 64, 48))
        assert 2 * cost.macs == counter.get_total_flops()
        assert cost.params == sum(p.numel() for p in network.parameters())


def test_the_paper_sets_size_and_classes():
    assert models.inventory("wrn-10-2") == models.inventory("wrn-10-2", 100, 32)
    assert models.inventory("mobilenet") == models.inventory("mobilenet", 751, (256, 128))


def test_the_plain_network_costs_itself():
    plain = models.inventory("resnet20", branches=())
    assert list(plain.branches) == ["B0"]
    assert plain.step_ratio == 1


def test_measuring_leaves_a_model_as_it_was():
    trunk = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    model = models.BranchedModel(trunk, {"B1": models.Branch([nn.Identity()], 4, 5)}, {"B1": "0"})
    hooks = [len(module._forward_hooks) for module in model.modules()]
    cost = models.measure(model, (6, 4))
    assert cost["B0"] == models.Cost(3 * 4 * 4 + 4 + 4 * 5 + 5, 6 * 4 * 3 * 4 * 4 + 4 * 5)
    assert cost["B1"] == models.Cost(25, 20)
    assert model.training
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
