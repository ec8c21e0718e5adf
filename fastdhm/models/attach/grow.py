"""Builds a side branch from a network's own blocks (App. A): those after the fork, initialised anew, wider or fewer.

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
ROWS = (nn.ModuleDict, nn.ModuleList)  # a block of these classes feeds each layer all earlier outputs, as in a DenseNet


@dataclass(frozen=True)
class Grown:
    """A branch and how it was built."""

    branch: Branch
    blocks: tuple[int, ...]
    """The number of blocks in each of its stages; in a dense block, each layer counts."""
    trunk_blocks: tuple[int, ...]
    """The same for the trunk's stages from the fork on."""
    width: str
    """``2x as wide``, or ``as wide``, with the reason if it should be wider."""
    kept: tuple[str, ...]
    """Its parameters that no layer can draw anew."""
    thawed: tuple[str, ...] = ()
    """Classes of frozen norms in the trunk; the branch has norms that learn in their place."""


class _ChannelsFirst(nn.Module):
    """[B, H, W, C] or tokens [B, N, C] to [B, C, H, W], which the pooling of a branch takes."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(-1, 1)
        return x if x.ndim == 4 else x.unsqueeze(-1)


def grow(
    layout: Layout, model: nn.Module, name: str, start: int, num_classes: int, init: Callable[[nn.Module], None] | None
) -> Grown:
    """Branch ``name`` from the value ``start`` on: B1 wider if the layers allow it, others with half the blocks.

    Raises:
        ValueError: the forward joins paths outside of all modules, or its blocks do not run on their own.
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
            "give your own branches (branches=)"
        )
    branch = Branch(stages, channels, num_classes)
    width = f"{factor}x as wide" if factor > 1 else f"as wide (not wider: {reason})" if wide else "as wide"
    trunk_blocks = _copies(layout, model, name, path, False)[1]
    steps = [step.module for stage in path for block in stage for step in block.steps if step.module]
    parts = (part for name in steps for part in model.get_submodule(name).modules())
    thawed = tuple(sorted({type(part).__name__ for part in parts if is_frozen(part)}))
    return Grown(branch, blocks, trunk_blocks, width, initialise(branch, init), thawed)


def _path(layout: Layout, model: nn.Module, start: int) -> list[list[Block]]:
    """The blocks of each stage from a value on; if it lies inside a block, the later steps of that block."""
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
        path[:2] = [path[0] + path[1]]  # only an activation or a pooling is left of the fork's own stage
    return path


def _has_weights(model: nn.Module, name: str) -> bool:
    return next(model.get_submodule(name).parameters(), None) is not None


def _shorter(trace: Trace, stage: list[Block]) -> list[Block]:
    """Half of a stage: half of each kind of block, rounded up. Only blocks that keep the shape are dropped."""
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
        f"branch {name} cannot be built from {type(model).__name__}: its forward joins paths outside of all modules "
        f"(between {before} and {after}). Wrap them in a module, fork later (forks=), or give your own (branches=)"
    )


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    return getattr(model.get_submodule(owner), last)


def _keep_input(stage: nn.Module) -> None:
    """Switch off in-place layers in a branch's first stage, which takes the trunk's own feature map."""
    for module in stage.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment] # torch's stubs know of tensors and modules alone


def _halve_rows(block: nn.Module) -> None:
    """Remove the last half of the layers of a block that is a row of layers of one class."""
    if isinstance(block, ROWS) and len({type(layer) for layer in block.children()}) == 1:
        for layer in [name for name, _ in block.named_children()][math.ceil(len(block) / 2) :]:
            del block._modules[layer]


def _fitted(layout: Layout, stages: list[nn.Module], start: int, factor: int) -> int:
    """Fit a branch's layers to one another and return the channels of its last feature map.

    That map must be as large as the trunk's and have one entry per image; otherwise the branch is refused.
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
    except Exception as error:  # any error of the network's own code in float32 on the CPU
        raise CannotFitError(f"its filters cannot be tested: {error}") from error
    if dead:
        raise CannotFitError(dead)
    return out[1]
