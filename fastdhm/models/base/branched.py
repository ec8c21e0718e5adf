"""A trunk with side branches: one forward pass gives stacked logits, and ``strip()`` gives back the plain network.

Legend: M branches (the trunk is B0), B batch, K classes.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fastdhm.errors import unknown
from fastdhm.models.base.copies import copied
from fastdhm.models.base.recompute import Recomputing, keep_activations


class Capture:
    """A forward hook that keeps a module's output for the branches; it ignores recomputed outputs."""

    def __init__(self, features: dict[str, Tensor], tap: str):
        self.features, self.tap = features, tap

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        if not Recomputing.active:
            self.features[self.tap] = output


class Branch(nn.Sequential):
    """A side branch (App. A), feature map to logits: residual stages, average pooling and its own classifier."""

    def __init__(self, stages: Iterable[nn.Module], features: int, num_classes: int):
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(features, num_classes)


class BranchedModel(nn.Module):
    """A plain network and the side branches that grow from it.

    ``forward(x)`` gives ``logits_MBK``, B0 (the trunk) first, then the active branches in the order of ``branches``.

    Args:
        trunk: the plain network, images to logits, under its own parameter names.
        branches: name ("B1", "B2", ...) -> module from the tapped feature map to logits.
        taps: name -> the trunk module whose output the branch takes.
        main: the name of the trunk's logits; not "B0" if the trunk is a side branch that is trained alone.
    """

    def __init__(self, trunk: nn.Module, branches: Mapping[str, nn.Module], taps: Mapping[str, str], main: str = "B0"):
        super().__init__()
        self.trunk, self.main = trunk, main
        self.branches = nn.ModuleDict(branches)
        self.taps = {name: taps[name] for name in branches}
        self._features: dict[str, Tensor] = {}
        self._hooks = {
            tap: trunk.get_submodule(tap).register_forward_hook(Capture(self._features, tap))
            for tap in dict.fromkeys(self.taps.values())
        }

    @property
    def branch_names(self) -> tuple[str, ...]:
        """The names along the first axis of the logits: ``("B0", "B1", ...)``."""
        return (self.main, *self.branches)

    def forward(self, x: Tensor, active: Iterable[str] | None = None) -> Tensor:
        """Logits of the trunk and of the ``active`` branches (default: all), stacked: ``[1 + len(active), B, K]``.

        A branch that is not active is not computed. ``ValueError`` for an unknown branch.
        """
        return torch.stack(self.outputs(x, active))

    def outputs(self, x: Tensor, active: Iterable[str] | None = None) -> list[Tensor]:
        """What :meth:`forward` stacks: the output of the trunk and of each ``active`` branch."""
        active = tuple(self.taps) if active is None else tuple(active)
        for name in active:
            if name not in self.branches:
                raise unknown("branch", name, self.branches)
        try:
            trunk = self.trunk(x)  # first: it leaves the features for the branches
            return [trunk, *(self.branches[name](self._features[self.taps[name]]) for name in active)]
        finally:
            self.drop_features()

    def drop_features(self) -> None:
        """Free the feature maps that were kept for the branches: after a pass they would only hold memory."""
        self._features.clear()

    def strip(self) -> nn.Module:
        """A copy of the plain network without the branches: same class, same parameter names, bit-equal output."""
        self.drop_features()
        trunk = copied(self.trunk)
        for tap, hook in self._hooks.items():
            trunk.get_submodule(tap)._forward_hooks.pop(hook.id)
        keep_activations(trunk)
        return trunk
