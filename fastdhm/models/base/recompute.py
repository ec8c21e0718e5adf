"""Activation checkpointing: most activations are dropped in the forward pass and computed again in the backward pass.

A row of n blocks is split into groups of about sqrt(n) blocks. Only the input of each group is kept, and one group at a
time is computed again (Chen et al., "Training deep nets with sublinear memory cost", 2016). A step takes about a third
longer, and no bit of the result changes: the second computation has the random numbers, the autocast type and the
buffers of the first. What it writes into buffers, such as the running statistics of batch norm, is dropped.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from fastdhm.errors import UserError


class Recomputing:
    """Whether a second computation is running; forward hooks then record nothing."""

    active = 0


class _Again:
    """The context of a second computation: the buffers have the values from before the first."""

    def __init__(self, group: nn.Module):
        places = [(module._buffers, name) for module in group.modules() for name in module._buffers]
        self.before = [(owner, name, value.clone()) for owner, name in places if (value := owner[name]) is not None]

    def __enter__(self) -> None:
        self.own = [(owner, name, owner[name]) for owner, name, _ in self.before]
        for owner, name, value in self.before:
            owner[name] = value.clone()  # with retain_graph=True, backward runs more than once
        Recomputing.active += 1

    def __exit__(self, *_: object) -> None:
        Recomputing.active -= 1
        for owner, name, value in self.own:
            owner[name] = value


def recomputed(group: nn.Module, *args: Tensor) -> Any:
    """``group(*args)``; only ``args`` is kept for the backward pass, which computes the group again.

    Raises:
        ValueError: the group overwrites its input.
    """
    if not torch.is_grad_enabled():
        return group(*args)
    if torch.compiler.is_compiling():  # the compiler takes care of buffers and random numbers
        return checkpoint(group, *args, use_reentrant=False)
    versions = [arg._version for arg in args]
    result = checkpoint(group, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _Again(group)))
    if versions != [arg._version for arg in args]:
        first = next(group.children())
        raise UserError(
            f"activation_checkpointing is true, but {type(first).__name__} overwrites its input and cannot be computed "
            "again: set activation_checkpointing to false"
        )
    return result


class _RecomputedForward:
    """Replaces the ``forward`` of a row: it runs the modules in order, group by group."""

    def __init__(self, row: nn.Sequential):
        weighted = sum(map(has_weights, row))
        size = max(1, round(math.sqrt(weighted)))
        groups: list[list[nn.Module]] = [[]]
        seen = 0
        for module in row:  # a module without weights, such as an in-place activation, never begins a group
            if has_weights(module):
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
    """Trace a group's modules; meanwhile the tracer's attribute ``group`` names their group."""
    tracer: Any = x.tracer
    tracer.group = group
    for module in group:
        x = module(x)
    tracer.group = None
    return x


def has_weights(module: nn.Module) -> bool:
    """Whether a module has a parameter of two or more dimensions; a norm has one value per channel."""
    return any(parameter.ndim >= 2 for parameter in module.parameters())


def _is_row(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a module is a ``Sequential`` with two or more weighted layers, at any depth."""
    if not isinstance(module, nn.Sequential):
        return False
    return sum(any(p.ndim >= 2 for p in layer._parameters.values() if p is not None) for layer in module.modules()) > 1


def find_rows(module: nn.Module) -> Iterator[nn.Sequential]:
    """The rows of blocks in a network: each ``Sequential`` with several weighted layers that holds no other row."""
    if _is_row(module) and not any(_is_row(child) for child in module):
        yield module
        return
    for child in module.children():
        yield from find_rows(child)


def checkpoint_activations(model: nn.Module) -> None:
    """Make the rows of blocks in ``model``, trunk and branches, drop their activations and compute them again.

    Outputs, gradients and buffers stay bit-equal; the names and the number of parameters stay the same. A row that the
    network's own ``forward`` takes apart instead of calling it is computed as before.

    Raises:
        ValueError: ``model`` has no rows; in training: a block overwrites its input.
    """
    rows = list(find_rows(model))
    if not rows:
        raise UserError(
            f"activation_checkpointing is true, but no part of {type(model).__name__} is an nn.Sequential of several "
            "layers with weights: set activation_checkpointing to false"
        )
    for row in rows:
        row.forward = _RecomputedForward(row)  # type: ignore[method-assign] # what torch calls, found on the instance


def keep_activations(model: nn.Module) -> None:
    """Undo :func:`checkpoint_activations`."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), _RecomputedForward):
            del module.forward
