"""Finds filters of a widened branch that can never learn, as when a block slices a fixed number of channels."""

import torch
from torch import Tensor, nn

from fastdhm.models.base.copies import copied

SMALL = 0.01  # so small that no activation saturates


def dead_filters(network: nn.Module, shape: tuple[int, ...]) -> str:
    """The first layer of ``network`` with filters that get no gradient, and their number; "" if there is none.

    A copy gets small positive values everywhere, so every connected filter has a gradient, whatever its activation is.
    If an activation cuts a filter off even so, the filter is tested again with its usual initial values. The meta
    device has no values, so nothing is found there.
    """
    if any(parameter.is_meta for parameter in network.parameters()):
        return ""
    first = _without_gradient(network, shape, positive=True)
    second = _without_gradient(network, shape, positive=False) if first else {}
    for name, dead in first.items():
        if name in second and (count := int((dead & second[name]).sum())):
            return f"{count} of {len(dead)} filters of {name} would never learn"
    return ""


def _without_gradient(network: nn.Module, shape: tuple[int, ...], positive: bool) -> dict[str, Tensor]:
    """Layer -> which of its filters get no gradient from a batch, for each layer with such filters."""
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # only the CPU's generator, which fork_rng restores
        probe = copied(network).cpu().float().requires_grad_(True).train(not positive)
        if positive:
            _make_positive(probe)
            out = probe(SMALL * (torch.rand(1, *shape[1:]) + 0.5))
        else:
            probe.apply(lambda layer: getattr(layer, "reset_parameters", lambda: None)())
            out = probe(torch.randn(shape))
        (out * (torch.rand(out.shape) + 0.5)).sum().backward()
    found: dict[str, Tensor] = {}
    for name, layer in probe.named_modules():
        weight = layer.weight if isinstance(layer, (nn.Conv2d, nn.Linear)) else None
        if weight is not None and weight.grad is not None:  # a layer that never runs does not run in the trunk either
            dead = ~weight.grad.flatten(1).any(1)
            found |= {name: dead} if dead.any() else {}
    return found


def _make_positive(network: nn.Module) -> None:
    for layer in network.modules():
        getattr(layer, "reset_running_stats", lambda: None)()
        for name, parameter in layer.named_parameters(recurse=False):
            inputs = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.data.uniform_(0.5, 1.5).mul_(SMALL if "bias" in name else 1 / inputs)
