"""A moving average of a network's weights, which is what a run that has one validates and keeps."""

import copy

import torch
from torch import Tensor, nn

from fastdhm.models.base.branched import BranchedModel
from fastdhm.models.base.recompute import keep_activations


class WeightAverage:
    """``average <- d average + (1 - d) weights`` after every optimizer step, in a network of its own.

    After ``t`` steps ``d = min(decay, (1 + t) / (10 + t))``: the average of a short run is not one of its beginning.
    Batch norm's running statistics are averaged as the weights are, its counters copied. torch's ``AveragedModel`` asks
    a tensor for ``t``, for which a decay that depends on it would have to wait at every step.

    Source: Tan and Le, "EfficientNet", ICML 2019, and the warm-up of TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, model: BranchedModel, decay: float):
        self.decay = decay
        self.model = frozen_copy(model)
        pairs = list(zip(tensors_of(self.model), tensors_of(model), strict=True))
        self.averaged, self.own = _columns([pair for pair in pairs if pair[0].is_floating_point()])
        self.counters, self.own_counters = _columns([pair for pair in pairs if not pair[0].is_floating_point()])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` earlier steps; waits for no device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averaged, self.own, 1 - decay)
        if self.counters:
            torch._foreach_copy_(self.counters, self.own_counters)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin with the weights as they are now."""
        torch._foreach_copy_(self.averaged + self.counters, self.own + self.own_counters)


def frozen_copy(model: BranchedModel) -> BranchedModel:
    """A copy to judge by: in evaluation mode, without gradients, its activations not computed again."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    keep_activations(copied)
    return copied


def tensors_of(model: nn.Module) -> list[Tensor]:
    """The parameters and buffers of a network, without their history."""
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [one for one, _ in pairs], [other for _, other in pairs]
