"""Activation checkpointing: most of what the forward pass makes is dropped, and made again in the backward pass.

Of a row of n blocks, what enters every group of about sqrt(n) blocks is kept; one group at a time is computed anew
(Chen et al., "Training deep nets with sublinear memory cost", 2016). That takes about a third longer and changes no
bit: the second computation has the random numbers, the autocast type and the buffers of the first, and what it writes
into buffers, as batch norm does its running statistics, is dropped.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from fastdhm.errors import UserError


class Recomputing:
    """Whether a second computation is under way, in which forward hooks have nothing to note."""

    active = 0


class _Again:
    """The context of a second computation: the modules have buffers with the values they had before the first."""

    def __init__(self, group: nn.Module):
        places = [(module._buffers, name) for module in group.modules() for name in module._buffers]
        self.before = [(owner, name, owner[name].clone()) for owner, name in places if owner[name] is not None]

    def __enter__(self) -> None:
        self.own = [(owner, name, owner[name]) for owner, name, _ in self.before]
        for owner, name, value in self.before:
            owner[name] = value.clone()  # a graph that is kept is gone through more than once
        Recomputing.active += 1

    def __exit__(self, *_: object) -> None:
        Recomputing.active -= 1
        for owner, name, value in self.own:
            owner[name] = value


def recomputed(group: nn.Module, *args: Tensor) -> Tensor | tuple[Tensor, ...]:
    """``group(*args)``, of which nothing but ``args`` is kept for the backward pass, which computes it once more.

    Raises:
        ValueError: the group writes over what it is given.
    """
    if not torch.is_grad_enabled():
        return group(*args)
    if torch.compiler.is_compiling():  # the compiler keeps buffers and random numbers right by itself
        return checkpoint(group, *args, use_reentrant=False)
    versions = [arg._version for arg in args]
    result = checkpoint(group, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _Again(group)))
    if versions != [arg._version for arg in args]:
        first = next(group.children())
        raise UserError(
            f"activation_checkpointing is true, and {type(first).__name__} writes over its input, so that it cannot be "
            "computed again: train this network without"
        )
    return result


class _RecomputedForward:
    """Stands for the ``forward`` of a row: its modules in turn, group by group."""

    def __init__(self, row: nn.Sequential):
        weighted = sum(map(_has_weights, row))
        size = max(1, round(math.sqrt(weighted)))
        groups: list[list[nn.Module]] = [[]]
        seen = 0
        for module in row:  # one that has no weights, such as an activation in place, never begins a group
            if _has_weights(module):
                if seen and seen % size == 0:
                    groups.append([])
                seen += 1
            groups[-1].append(module)
        self.groups = [nn.Sequential(*group) for group in groups]

    def __call__(self, x: Tensor | fx.Proxy) -> Tensor | fx.Proxy:
        for group in self.groups:
            x = _trace(group, x) if isinstance(x, fx.Proxy) else recomputed(group, x)
        return x


def _trace(group: nn.Sequential, x: fx.Proxy) -> fx.Proxy:
    """Trace a group's modules; the tracer's attribute ``group`` says meanwhile whose they are."""
    x.tracer.group = group
    for module in group:
        x = module(x)
    x.tracer.group = None
    return x


def _has_weights(module: nn.Module) -> bool:
    """More than a norm has, which scales channels one by one."""
    return any(parameter.ndim >= 2 for parameter in module.parameters())


def _is_row(module: nn.Module) -> bool:
    """A ``Sequential`` of two weighted layers or more, at whatever depth."""
    if not isinstance(module, nn.Sequential):
        return False
    return sum(any(p.ndim >= 2 for p in layer._parameters.values() if p is not None) for layer in module.modules()) > 1


def find_rows(module: nn.Module) -> Iterator[nn.Sequential]:
    """The rows of blocks in a network: a ``Sequential`` with several weighted layers, but none made of such rows."""
    if _is_row(module) and not any(_is_row(child) for child in module):
        yield module
        return
    for child in module.children():
        yield from find_rows(child)


def checkpoint_activations(model: nn.Module) -> None:
    """Have the rows of blocks of ``model``, trunk and branches alike, drop their activations and compute them again.

    Outputs, gradients and buffers stay the same to the bit, names and numbers of parameters too. Where a network's own
    ``forward`` takes a row apart and does not call it, that row is computed as before.

    Raises:
        ValueError: ``model`` has no rows; in training, a block that writes over its input.
    """
    rows = list(find_rows(model))
    if not rows:
        raise UserError(
            f"activation_checkpointing is true, but no part of {type(model).__name__} is a Sequential of several "
            "weighted layers, whose activations could be computed again"
        )
    for row in rows:
        row.forward = _RecomputedForward(row)


def keep_activations(model: nn.Module) -> None:
    """Undo :func:`checkpoint_activations`."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), _RecomputedForward):
            del module.forward
