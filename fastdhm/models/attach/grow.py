"""A side branch out of a network's own blocks (App. A): the blocks after the fork, initialised anew, wider or fewer.

Legend: B batch, C channels, H height, W width, N tokens.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fastdhm.errors import UserError, first_line
from fastdhm.models.attach.dead import dead_filters
from fastdhm.models.attach.fit import CannotFitError, Replay, initialise, is_frozen, own_copy, refit
from fastdhm.models.attach.stages import Block, Layout, Step, channels_first, resolution
from fastdhm.models.base.branched import Branch
from fastdhm.models.base.copies import refuse_computed
from fastdhm.models.base.trace import Trace

WIDER = 2  # B1 has twice the trunk's channels, as in Tables 6, 8 and 9
ROWS = (nn.ModuleDict, nn.ModuleList)  # a block that is one of these gives each layer all before it, as in a DenseNet


@dataclass(frozen=True)
class Grown:
    """A branch, and how it came out."""

    branch: Branch
    blocks: tuple[int, ...]
    """Of each of its stages; the layers of a dense block count."""
    trunk_blocks: tuple[int, ...]
    """Of the trunk's stages from the fork on."""
    width: str
    """``2x as wide``, or ``as wide``, with the reason where it should be wider."""
    kept: tuple[str, ...]
    """Its parameters that have no rule to be drawn by."""
    thawed: tuple[str, ...] = ()
    """The classes of the trunk's frozen norms, in whose place it has norms that learn."""


class _ChannelsFirst(nn.Module):
    """[B, H, W, C] or tokens [B, N, C] to [B, C, H, W], as the pooling of a branch takes it."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(-1, 1)
        return x if x.ndim == 4 else x.unsqueeze(-1)


def grow(
    layout: Layout, model: nn.Module, name: str, start: int, num_classes: int, init: Callable[[nn.Module], None] | None
) -> Grown:
    """Branch ``name`` from the value ``start`` on: B1 wider where the layers allow it, any other with half the blocks.

    Raises:
        ValueError: the forward joins several paths outside of any module, or bakes in what was given to it.
    """
    path = _path(layout, model, start)
    wide, reason = name == "B1", ""
    attempts = [(WIDER, False), (1, False)] if wide else [(1, True), (1, False)]
    for factor, short in attempts:
        stages, blocks = _copies(layout, model, name, path, short)
        try:
            channels = _fitted(layout, stages, start, factor)
            break
        except CannotFitError as error:
            reason = reason or first_line(error if str(error).strip() else error.__cause__ or error)
    else:
        raise UserError(
            f"branch {name} of {type(model).__name__} does not run on its own ({reason}): fork elsewhere (forks=), or "
            "bring branches of your own"
        )
    branch = Branch(stages, channels, num_classes)
    width = f"{factor}x as wide" if factor > 1 else f"as wide (not wider: {reason})" if wide else "as wide"
    trunk_blocks = _copies(layout, model, name, path, False)[1]
    steps = [step.module for stage in path for block in stage for step in block.steps if step.module]
    parts = (part for name in steps for part in model.get_submodule(name).modules())
    thawed = tuple(sorted({type(part).__name__ for part in parts if is_frozen(part)}))
    return Grown(branch, blocks, trunk_blocks, width, initialise(branch, init), thawed)


def _path(layout: Layout, model: nn.Module, start: int) -> list[list[Block]]:
    """The blocks of each stage from a value on. Where it lies within a block, the later steps of that block."""
    path = []
    for stage in layout.stages:
        later = []
        for block in stage:
            steps = tuple(step for step in block.steps if step.start >= start)
            if steps:
                later.append(Block(steps, block.kind if steps == block.steps else None))
        if later:
            path.append(later)
    if len(path) > 1 and not any(step.module and _has_weights(model, step.module) for b in path[0] for step in b.steps):
        path[:2] = [path[0] + path[1]]  # what is left of the fork's own stage is an activation or a pooling
    return path


def _has_weights(model: nn.Module, name: str) -> bool:
    return next(model.get_submodule(name).parameters(), None) is not None


def _shorter(trace: Trace, stage: list[Block]) -> list[Block]:
    """About half of a stage: of each kind of block half, rounded up. Only blocks that keep the shape can go."""
    gone = []
    for kind, count in Counter(block.kind for block in stage if block.kind).items():
        spare = [b for b in stage[1:] if b.kind is kind and trace.shapes[b.start] == trace.shapes[b.end]]
        gone += spare[max(len(spare) - count // 2, 0) :]
    return [block for block in stage if block not in gone]


def _copies(
    layout: Layout, model: nn.Module, name: str, path: list[list[Block]], short: bool
) -> tuple[list[nn.Module], tuple[int, ...]]:
    """A copy of each stage of the path, half as long if ``short``, and the number of its blocks."""
    stages: list[nn.Module] = []
    counts = []
    for stage in path:
        count, modules = 0, []
        for block in _shorter(layout.trace, stage) if short else stage:
            copies = [_copy(layout, model, name, step) for step in block.steps]
            if short:
                _halve_rows(copies[0])
            count += len(copies[0]) if isinstance(copies[0], ROWS) else bool(block.kind)
            modules += copies
        stages.append(nn.Sequential(*modules))
        counts.append(count)
    _keep_input(stages[0])
    images, end = layout.trace.shapes[0], layout.trace.shapes[layout.end]
    if len(end) == 3 or not channels_first(end, images):
        stages.append(_ChannelsFirst())
    return stages, tuple(counts)


def _copy(layout: Layout, model: nn.Module, name: str, step: Step) -> nn.Module:
    if step.module is not None:
        module = model.get_submodule(step.module)
        refuse_computed(module, step.module, f"branch {name}")
        return own_copy(module)
    if step.function is not None:
        own = {seen: _tensor(model, name) for seen, name in layout.trace.named.items()}
        return Replay(step.function, layout.trace.objects[step.start], own)
    before, after = (layout.trace.shapes[value][1:] for value in (step.start, step.end))
    raise UserError(
        f"branch {name} cannot be built from {type(model).__name__}: between {before} and {after} its forward joins "
        "several paths outside of any module. Wrap them in a module, fork later (forks=), or bring branches of your own"
    )


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    return getattr(model.get_submodule(owner), last)


def _keep_input(stage: nn.Module) -> None:
    """A branch's first stage takes the trunk's own feature map: nothing there may work in place."""
    for module in stage.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment] # torch's stubs know of tensors and modules alone


def _halve_rows(block: nn.Module) -> None:
    """Take the last half of its layers from a block that is a row of layers of one class."""
    if isinstance(block, ROWS) and len({type(layer) for layer in block.children()}) == 1:
        for layer in [name for name, _ in block.named_children()][math.ceil(len(block) / 2) :]:
            del block._modules[layer]


def _fitted(layout: Layout, stages: list[nn.Module], start: int, factor: int) -> int:
    """Fit a branch's layers to one another and count the channels that it ends with.

    It has to end with a map as large as the trunk's, for as many images as it was given, or it is not what it seems.
    """
    shapes = layout.trace.shapes
    network, images, end = nn.Sequential(*stages), shapes[start][0] + 1, shapes[layout.end]
    fork = (images, *shapes[start][1:])
    out = refit(network, fork, factor)
    sides = (end[1], 1) if len(end) == 3 else resolution(end, shapes[0]) or ()
    if (out[0], *out[2:]) != (images, *sides):
        raise CannotFitError(f"it gives {out} where the trunk gives {end}")
    try:
        dead = dead_filters(network, fork) if factor > 1 else ""
    except Exception as error:  # whatever the network's own code says to a run in float32 on the CPU
        raise CannotFitError(f"whether its filters learn cannot be seen: {error}") from error
    if dead:
        raise CannotFitError(dead)
    return out[1]
