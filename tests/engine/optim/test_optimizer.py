"""What moves the weights, and what stands still."""

import copy

import pytest
import torch
from torch import nn

from fastdhm import models
from fastdhm.engine.optim.by_name import make_optimizer
from fastdhm.engine.optim.optimizer import freeze

KINDS = ("sgd", "amsgrad", "adamw")


def make(kind, model, decay, all_of_it=True, **more):
    return make_optimizer(model, kind, **{"lr": 0.1, "weight_decay": decay, "decay_norm_bias": all_of_it} | more)


@pytest.mark.parametrize("kind", KINDS)
def test_norm_and_bias_can_be_spared_the_decay(kind):
    model = models.build("resnet8", 10)
    (everything,) = make(kind, model, 1e-4).param_groups
    assert everything["weight_decay"] == 1e-4 and everything["fused"]
    decayed, spared = make(kind, model, 1e-4, False).param_groups
    assert spared["weight_decay"] == 0 and {p.ndim for p in spared["params"]} == {1}
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert len(decayed["params"]) + len(spared["params"]) == len(everything["params"])


def test_momentum_from_zeros_is_momentum_from_nothing():
    """The buffers that the optimizer starts with change no first step."""
    networks = [nn.Linear(3, 2), nn.Linear(3, 2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [
        make("sgd", networks[0], 1e-2, nesterov=True),
        torch.optim.SGD(networks[1].parameters(), 0.1, 0.9, weight_decay=1e-2, nesterov=True, fused=True),
    ]
    for _ in range(3):
        for network, optimizer in zip(networks, optimizers, strict=True):
            network(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(networks[0].state_dict(), networks[1].state_dict(), rtol=0, atol=0)


def test_amsgrad_is_its_definition_also_for_a_tensor_that_starts_late():
    """Bias-corrected Adam over the largest second moment so far, the decay in the gradient; shapes channels-last."""
    lr, (beta1, beta2), decay, late = 0.01, (0.9, 0.99), 0.1, 2
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 2, 3, bias=False))
    model.to(memory_format=torch.channels_last)
    weights = [p.detach().clone().double() for p in model.parameters()]
    moments = [[torch.zeros_like(w) for _ in range(3)] for w in weights]
    optimizer = make("amsgrad", model, decay, lr=lr, betas=(beta1, beta2))
    for step in range(1, 7):
        for i, parameter in enumerate(model.parameters()):
            since = step - late * i  # the second has no gradient in the first two steps
            # gradients that fall, so that the largest second moment and the current one differ
            parameter.grad = torch.randn(parameter.shape, generator=generator) / step**2 if since > 0 else None
            if since <= 0:
                continue
            parameter.grad = parameter.grad.contiguous(memory_format=torch.channels_last)
            grad = parameter.grad.double() + decay * weights[i]
            first, second, largest = moments[i]
            first.lerp_(grad, 1 - beta1)
            second.lerp_(grad.square(), 1 - beta2)
            torch.maximum(largest, second, out=largest)
            size = (largest / (1 - beta2**since)).sqrt() + 1e-8
            weights[i] -= lr * first / (1 - beta1**since) / size
        optimizer.step()
    for parameter, expected in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)


def small():
    torch.manual_seed(0)
    trunk = nn.Sequential()
    trunk.add_module("body", nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)))
    trunk.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    trunk.add_module("fc", nn.Linear(4, 5))
    branch = models.Branch([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)], 4, 5)
    return models.BranchedModel(trunk, {"B1": branch}, {"B1": "body"})


def train_a_step(model):
    """The names of what moved, weights and statistics, in a step with decay and two old momenta."""
    optimizer = make("sgd", model, 0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_what_is_frozen_stands_still_in_weights_and_statistics_and_moves_again_after():
    model = small()
    everything = set(model.state_dict())
    frozen = {name for name in everything if name.startswith("trunk.body.")}
    parameters = {name for name, _ in model.named_parameters()}
    freeze(model, frozen & parameters)
    assert train_a_step(model) == everything - frozen
    body = model.trunk.body
    assert not body.training and not body[2].training and model.branches["B1"].training and model.trunk.fc.training
    assert body[0].weight.grad is None
    freeze(model, ())
    assert train_a_step(model) == everything
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", KINDS)
def test_without_torchs_wrappers_the_bits_are_the_same(name):
    """Ours are torch's optimizers less what keeps them out of compiled functions."""
    kinds = {"sgd": torch.optim.SGD, "amsgrad": torch.optim.Adam, "adamw": torch.optim.AdamW}
    options = {"sgd": {"momentum": 0.9, "nesterov": True}, "amsgrad": {"amsgrad": True}, "adamw": {}}[name]
    models = []
    for ours in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        if ours:
            optimizer = make(name, model, 0.01, nesterov=name == "sgd")
        else:
            optimizer = kinds[name](model.parameters(), lr=0.1, weight_decay=0.01, fused=True, **options)
        assert isinstance(optimizer, kinds[name])
        for _ in range(3):
            model(torch.randn(4, 5)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            optimizer.load_state_dict(optimizer.state_dict())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        models.append(model)
    assert torch.equal(models[0].weight, models[1].weight)


LAYOUTS = {
    "plain": lambda tensor: tensor.contiguous(),
    "channels-last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
    "turned": lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
def test_a_step_is_the_same_wherever_numbers_lie(kind, layout, grad_layout):
    """Parameters of any layout with gradients of any other, against torch's own step of plain ones."""
    results = []
    for ours in (True, False):
        torch.manual_seed(0)
        parameter = nn.Parameter((LAYOUTS[layout] if ours else torch.Tensor.contiguous)(torch.randn(8, 6, 3, 3)))
        holder = nn.ParameterList([parameter])
        if ours:
            optimizer = make(kind, holder, 0.01)
        elif kind == "sgd":
            optimizer = torch.optim.SGD([parameter], 0.1, 0.9, weight_decay=0.01, fused=True)
        elif kind == "adamw":
            optimizer = torch.optim.AdamW([parameter], 0.1, weight_decay=0.01, fused=True)
        else:
            optimizer = torch.optim.Adam([parameter], 0.1, weight_decay=0.01, amsgrad=True, fused=True)
        for _ in range(3):
            parameter.grad = (LAYOUTS[grad_layout] if ours else torch.Tensor.contiguous)(torch.randn(8, 6, 3, 3))
            optimizer.step()
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        if ours:
            assert set(optimizer.state) == {parameter}
            state = [value for name, value in optimizer.state[parameter].items() if name != "step"]
            assert state and all(value.stride() == parameter.stride() for value in state)
        results.append(parameter.detach().contiguous())
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_copies_no_gradient(kind):
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    optimizer = make(kind, model, 0.01)
    model(torch.randn(2, 4, 6, 6)).sum().backward()
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        optimizer.step()
    seen = [event.input_shapes[0] for event in profile.events() if event.name == "aten::clone"]
    assert not seen and any("fused" in event.name for event in profile.events())
