"""A model's classifiers apart from what they read, for a loss that computes them itself.

Legend: B batch, K classes, D features, of each branch its own number.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from fastdhm.errors import UserError, unknown
from fastdhm.models.base.branched import BranchedModel
from fastdhm.models.base.classifier import find_head
from fastdhm.models.base.trace import trace


class _Passed(nn.Module):
    """Stands for a classifier in a pass that ends before it."""

    def forward(self, features_BD: Tensor) -> Tensor:
        return features_BD


class Headless(nn.Module):
    """A model up to its classifiers: ``headless(image_BCHW)`` gives what those of the branches read, and not logits.

    With ``weights, bias = headless.heads()``, ``F.linear(features[m], weights[m], bias[m])`` are the logits that
    ``model(image_BCHW)`` gives for branch m. The parameters are the model's own. Nothing of the model changes.

    Args:
        model: every branch of which ends in an ``nn.Linear``.
        size_CHW: image size for the run that finds these layers.

    Raises:
        ValueError: the model does not run on images of that size, or a branch does not end in an ``nn.Linear``.
    """

    def __init__(self, model: BranchedModel, size_CHW: tuple[int, int, int]):
        super().__init__()
        if not isinstance(model, BranchedModel):
            raise UserError(
                f"{type(model).__name__} is no model of fastdhm: Headless takes what models.build or attach gives"
            )
        if len(size_CHW) != 3:
            raise UserError(f"size_CHW is {tuple(size_CHW)}: must be (channels, height, width) of the images")
        self.model, self.passed = model, _Passed()
        self._places = {name: _place(model, name, size_CHW) for name in model.branch_names}

    def forward(self, image_BCHW: Tensor, active: Iterable[str] | None = None) -> list[Tensor]:
        """The features ``[B, D]`` of the trunk and of the ``active`` branches (default: all), each with its own D."""
        places = list(self._places.values())
        layers = [getattr(parent, child) for parent, child in places]  # as they are now: one may have been replaced
        for parent, child in places:
            parent._modules[child] = self.passed
        try:
            return self.model.outputs(image_BCHW, active)
        finally:
            for (parent, child), layer in zip(places, layers, strict=True):
                parent._modules[child] = layer

    def heads(self, active: Iterable[str] | None = None) -> tuple[list[Tensor], list[Tensor] | None]:
        """Weights ``[K, D]`` and biases ``[K]`` of these classifiers; None for the biases if no classifier has one."""
        active = tuple(self.model.taps) if active is None else tuple(active)
        layers = [self._layer(name) for name in (self.model.main, *active)]
        weights: list[Tensor] = [layer.weight for layer in layers]
        if all(layer.bias is None for layer in layers):
            return weights, None
        none = weights[0].new_zeros(len(weights[0]))
        return weights, [none if layer.bias is None else layer.bias for layer in layers]

    def _layer(self, name: str) -> nn.Linear:
        if name not in self._places:
            raise unknown("branch", name, self.model.branches)
        parent, child = self._places[name]
        layer = getattr(parent, child)
        if not isinstance(layer, nn.Linear):
            raise UserError(f"the classifier of branch {name} is now of {type(layer).__name__}: must be an nn.Linear")
        if layer._forward_pre_hooks or layer._forward_hooks:
            raise UserError(f"the classifier of branch {name} has hooks, which no pass would call: remove them")
        return layer


class _One(nn.Module):
    """The logits of one branch."""

    def __init__(self, model: BranchedModel, name: str):
        super().__init__()
        self.model, self.active = model, (name,) * (name != model.main)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.model.outputs(image_BCHW, self.active)[-1]


def _place(model: BranchedModel, name: str, size_CHW: tuple[int, int, int]) -> tuple[nn.Module, str]:
    """The module around a branch's classifier, and its name there."""
    network = _One(model, name)
    traced = trace(network, size_CHW)
    head = find_head(network, traced)
    why, layer = head.missing, None
    if head.layer is not None:
        layer, last = network.get_submodule(head.layer), traced.functions[traced.created[traced.output]]
        if type(layer) is not nn.Linear:
            why = f"its last layer {head.layer} is of {type(layer).__name__}"
        elif last.within != head.layer:
            why = f"its logits are changed after its last layer {head.layer}"
        elif len(traced.shapes[head.start]) != 2:
            why = f"its last layer {head.layer} reads {traced.shapes[head.start]}"
        elif layer._forward_pre_hooks or layer._forward_hooks:
            why = f"its last layer {head.layer} has hooks"
    if why:
        raise UserError(f"branch {name} does not end in an nn.Linear of [batch, features]: {why.replace('model.', '')}")
    assert head.layer is not None
    parent, _, child = head.layer.rpartition(".")
    return network.get_submodule(parent), child
