"""Whether the branches pull what they share the same way: the cosines between their loss gradients at the forks.

Mimicking penalises, to leading order, gradients of two branches that disagree on their common stem (Eq. 10-11).
Legend: A the branches that a step computes, B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations

import torch
from torch import Tensor

from fastdhm.engine import distributed
from fastdhm.engine.device import autocast
from fastdhm.engine.labels import Labels
from fastdhm.models import BranchedModel

TINY = torch.finfo(torch.float32).tiny


def cosine_names(model: BranchedModel) -> tuple[str, ...]:
    """What :func:`gradient_cosines` can give for a model: ``grad_cosine/B0-B2@layer1`` for a pair of paths and a fork.

    Paths that part before a fork have no cosine there.
    """
    pairs, forks = combinations(model.branch_names, 2), dict.fromkeys(model.taps.values())
    return tuple(_name(pair, fork) for pair in pairs for fork in forks)


def _name(pair: tuple[str, str], fork: str) -> str:
    return f"grad_cosine/{'-'.join(pair)}@{fork}"


class _Keep:
    """A forward hook that keeps a module's output, as what a gradient can be asked for."""

    def __init__(self, kept: dict[str, Tensor], name: str):
        self.kept, self.name = kept, name

    def __call__(self, module: torch.nn.Module, args: tuple, output: Tensor) -> None:
        # the output of a frozen stem needs no gradient by itself
        self.kept[self.name] = output if output.requires_grad else output.requires_grad_()


def gradient_cosines(
    model: BranchedModel,
    image_BCHW: Tensor,
    labels: Labels,
    active: tuple[str, ...],
    *,
    precision: torch.dtype = torch.float32,
    label_smoothing: float = 0.0,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Tensor]:
    """For each fork f and each two paths p, q through it, ``<g_p, g_q> / (|g_p| |g_q|)`` with ``g_m = dCE_m / df``.

    ``f`` is the feature map at the fork of the whole batch, ``CE_m`` the cross-entropy that B0 or an ``active`` branch
    is trained by, labels mixed and weighed as they are, and the gradient one vector over batch, channels and pixels. It
    takes a forward pass and, per path, a backward pass to its first fork, without gradients of parameters. Nothing that
    training depends on changes: parameters have no gradient of it, batch-norm statistics and random generators are put
    back.

    Args:
        model: in the mode of the training step.
        scaler: of float16 training, as small gradients would vanish here too.

    Returns:
        Name as of :func:`cosine_names` -> float32 scalar on the device; NaN where a gradient overflowed, 0 where one is
        zero.
    """
    features: dict[str, Tensor] = {}
    logits: dict[str, Tensor] = {}  # of each path alone: from a stack every loss would go back through all of them
    paths = {model.main: model.trunk, **{name: model.branches[name] for name in active}}
    with _undisturbed(model, image_BCHW.device):
        hooks = [
            model.trunk.get_submodule(fork).register_forward_hook(_Keep(features, fork))
            for fork in dict.fromkeys(model.taps.values())
        ]
        hooks += [module.register_forward_hook(_Keep(logits, path)) for path, module in paths.items()]
        try:
            with autocast(image_BCHW.device, precision):
                model(image_BCHW, active)
        finally:
            for hook in hooks:
                hook.remove()
        directions = {}
        for path, logits_BK in logits.items():
            loss = labels.cross_entropy(logits_BK.float(), label_smoothing)
            loss = loss if scaler is None else scaler.scale(loss)
            gradients = torch.autograd.grad(loss, list(features.values()), retain_graph=True, allow_unused=True)
            for fork, gradient in zip(features, gradients, strict=True):
                if gradient is not None:  # else the path left the trunk before
                    vector = gradient.flatten().float()
                    directions[path, fork] = vector / _norm(vector).clamp_min(TINY)
    cosines = {
        _name(pair, fork): directions[pair[0], fork] @ directions[pair[1], fork]
        for pair in combinations(paths, 2)
        for fork in features
        if (pair[0], fork) in directions and (pair[1], fork) in directions
    }
    distributed.sum_(*cosines.values())
    return cosines


def _norm(vector: Tensor) -> Tensor:
    """The norm of a vector of which every process has a part."""
    if distributed.count() == 1:
        return vector.norm()
    square = vector.square().sum()
    distributed.sum_(square)
    return square.sqrt()


@contextmanager
def _undisturbed(model: BranchedModel, device: torch.device) -> Iterator[None]:
    """Put the model's buffers and the random generators back at the end."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)
