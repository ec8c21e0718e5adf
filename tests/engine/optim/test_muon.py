"""Muon: which weights it moves, as which matrices, and what moves the others."""

import importlib.util

import pytest
import torch
from torch import nn

from fastdhm import models
from fastdhm.engine.optim import muon
from fastdhm.engine.optim.by_name import make_optimizer

needs_torchs = pytest.mark.skipif(not muon.has_torchs_muon(), reason="torch has Muon from 2.9 on")

needs_muon = pytest.mark.skipif(
    not muon.has_torchs_muon() and importlib.util.find_spec("timm") is None, reason="neither torch nor timm has Muon"
)


def names_of(model, weights):
    return {name for name, p in model.named_parameters() if p in weights}


def test_hidden_weights_are_muons_and_the_rest_is_adamws():
    model = models.build("resnet8", 10)
    hidden = names_of(model, muon.hidden_weights(model))
    weights = {name for name, p in model.named_parameters() if p.ndim > 1}
    assert weights - hidden == {
        "trunk.conv1.weight",
        "trunk.fc.weight",
        "branches.B1.fc.weight",
        "branches.B2.fc.weight",
    }


def test_depthwise_weights_are_no_matrices():
    model = models.build("mobilenet", 10, ())
    assert all(weight.shape[1] > 1 for weight in muon.hidden_weights(model))


def expected_update(grad, momentum):
    """A step on a matrix from nothing, by the singular vectors: what the iteration comes near to."""
    update = (1 - momentum) * grad
    update = grad.lerp(update, momentum)  # Nesterov
    u, _, v = torch.linalg.svd(update, full_matrices=False)
    return u @ v


@needs_muon
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_is_moved_as_a_matrix(layout):
    torch.manual_seed(0)
    first, hidden, last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, bias=False), nn.Conv2d(8, 2, 1)
    model = nn.Sequential(first, hidden, last).to(memory_format=layout)
    optimizer = make_optimizer(model, "muon", lr=0.1, weight_decay=0.0)
    before = hidden.weight.detach().clone()
    others = {p: p.detach().clone() for p in model.parameters()}
    grads = {p: torch.randn_like(p) for p in model.parameters()}
    for p, grad in grads.items():
        p.grad = grad.clone()
    optimizer.step()
    moved = (before - hidden.weight.detach()).flatten(1)
    rate = 0.1 * 0.2 * max(moved.shape) ** 0.5  # so that an entry moves as much as one of AdamW
    expected = rate * expected_update(grads[hidden.weight].flatten(1), 0.95)
    cosine = torch.cosine_similarity(moved.flatten(), expected.flatten(), dim=0)
    assert cosine > 0.97 and 0.7 < moved.norm() / expected.norm() < 1.3
    for p in (first.weight, first.bias, last.weight):  # AdamW's first step is the sign
        torch.testing.assert_close(others[p] - p.detach(), 0.1 * grads[p].sign(), rtol=1e-3, atol=1e-4)


@needs_torchs
def test_layouts_differ_by_rounding_alone():
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 1)).to(memory_format=layout)
        optimizer = make_optimizer(model, "muon", lr=0.01, weight_decay=0.1)
        for _ in range(3):
            model(torch.ones(1, 3, 8, 8)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        state = optimizer.parts[0].state[model[1].weight]["momentum_buffer"]
        assert state.stride() == model[1].weight.stride()
        ends.append(model[1].weight.detach().contiguous())
    torch.testing.assert_close(*ends, rtol=0.02, atol=2e-3)


@needs_torchs
def test_timms_moves_as_torchs_does(monkeypatch):
    """Where torch has none, timm's is taken with torch's defaults."""
    pytest.importorskip("timm")
    ends = []
    for has in (True, False):
        monkeypatch.setattr(muon, "has_torchs_muon", lambda has=has: has)
        monkeypatch.setattr("fastdhm.engine.optim.by_name.has_torchs_muon", lambda has=has: has)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 1))
        optimizer = make_optimizer(model, "muon", lr=0.01, weight_decay=0.1)
        for _ in range(3):
            model(torch.ones(1, 3, 8, 8)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(model[1].weight.detach())
    torch.testing.assert_close(*ends, rtol=0.02, atol=2e-3)
