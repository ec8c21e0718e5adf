"""What a network and its branches cost: parameters and multiply-adds.

Legend: M branches, B batch, C channels, H height, W width.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from fastdhm.models.base.branched import BranchedModel


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds of the forward pass of one image (convolutions and linear layers)."""

    params: int
    macs: int

    def cells(self) -> tuple[str, str]:
        """Both for a table."""
        return short(self.params), short(self.macs)


def short(number: int) -> str:
    """Three digits and a unit: ``11.7M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            value = number / size
            return f"{value:.{max(0, 3 - len(str(int(value + 0.0005 * value))))}f}{unit}"
    return str(number)


@dataclass(frozen=True)
class Inventory:
    """The cost of the trunk and of each branch at one image size."""

    image_size: tuple[int, int]
    """Height and width, in pixels."""
    num_classes: int
    branches: dict[str, Cost]
    """Name -> cost: "B0" is the trunk; "B1" and so on are what a branch adds from its fork on."""

    @property
    def step_ratio(self) -> float:
        """Multiply-adds of a training step with every branch, divided by those of a step of the trunk alone.

        A layer's backward pass costs twice its forward pass in both steps, so the forward passes have the same ratio.
        """
        return sum(cost.macs for cost in self.branches.values()) / self.branches["B0"].macs


class _Counter:
    """A forward hook that adds up the multiply-adds of its layers."""

    def __init__(self):
        self.macs = 0

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        # Each output is a sum over the weights of one filter. A transposed convolution spreads each input over them.
        sums = args[0] if isinstance(module, _ConvTransposeNd) else output
        self.macs += sums.numel() * module.get_parameter("weight")[0].numel()


class _WithoutNorms(TorchFunctionMode):
    """Skips batch norms, which keep the shape: on the meta device they take most of the time."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func is F.batch_norm else func(*args, **(kwargs or {}))


def measure(model: BranchedModel, image_size: tuple[int, int]) -> dict[str, Cost]:
    """The cost of a model's trunk ("B0") and branches, for images of that height and width.

    One image passes through the model on the model's device. On the meta device this computes nothing and needs no
    memory.
    """
    parts = {"B0": model.trunk, **model.branches}
    counters = {name: _Counter() for name in parts}
    hooks = [
        module.register_forward_hook(counters[name])
        for name, part in parts.items()
        for module in part.modules()
        if isinstance(module, (_ConvNd, nn.Linear))
    ]
    was_training = model.training
    model.eval()
    try:
        device = next(model.parameters()).device
        with torch.no_grad(), _WithoutNorms() if device.type == "meta" else nullcontext():
            model(torch.zeros(1, 3, *image_size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return {
        name: Cost(sum(parameter.numel() for parameter in part.parameters()), counters[name].macs)
        for name, part in parts.items()
    }
