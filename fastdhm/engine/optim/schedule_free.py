"""The network of a schedule-free optimizer: an average of the weights that it trains with."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fastdhm.engine.optim.average import frozen_copy, tensors_of
from fastdhm.models.base.branched import BranchedModel


class ScheduleFreeAverage:
    """A network with the weights of the optimizer's evaluation mode, while the run's own keeps those it trains with.

    The library goes from one mode to the other in place, and back with a rounding. Here the weights are copied before
    and put back, so that a validation or a checkpoint changes no bit of the training.

    Batch norms have seen activations of the other weights. So their statistics are measured anew before a validation,
    see :meth:`measure_norms`; in a checkpoint of a step between two validations they are those of the training weights.

    Source: Defazio et al., "The road less scheduled", NeurIPS 2024, and the notes of its library on batch norm.
    """

    def __init__(self, model: BranchedModel, optimizer: torch.optim.Optimizer):
        self.trained = model
        self.optimizer: Any = optimizer  # it has modes, as modules do
        self.model = frozen_copy(model)
        self.taken_at: int | None = None

    def update(self, step: int) -> None:
        """Nothing: the optimizer averages."""

    def restart(self) -> None:
        """Begin with the weights as they are now."""
        self.take(-1)

    @torch.no_grad()
    def take(self, step: int) -> None:
        """Have the network be the average after ``step`` steps, with the batch norms of the training."""
        if step == self.taken_at:
            return
        self.taken_at = step
        weights: list[Tensor] = list(self.trained.parameters())
        kept = [weight.clone() for weight in weights]
        self.optimizer.eval()
        for mine, tensor in zip(tensors_of(self.model), tensors_of(self.trained), strict=True):
            mine.copy_(tensor)
        self.optimizer.train()
        torch._foreach_copy_(weights, kept)

    def measure_norms(self, images: Iterable[Tensor]) -> None:
        """Give the batch norms the mean statistics of these batches."""
        norms = [norm for norm in self.model.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        for image_BCHW in images:
            self.model(image_BCHW)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
