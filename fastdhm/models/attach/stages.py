"""Finds the blocks and stages of a network in its trace: a stage begins where the resolution drops.

Legend: B batch, C channels, H height, W width, N tokens.
"""

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fastdhm.errors import UserError
from fastdhm.models.base.classifier import Head, find_head
from fastdhm.models.base.recompute import has_weights
from fastdhm.models.base.trace import Call, Trace

DROP = 1.5  # if sides shrink by less, as in a convolution without padding, the stage goes on
SEVERAL = 3.0  # a module that shrinks the sides by more holds several stages


@dataclass(frozen=True)
class Step:
    """A piece of the network between two values that all data passes through: a module, a function, or neither."""

    start: int
    end: int
    module: str | None = None
    function: Call | None = None


@dataclass(frozen=True)
class Block:
    """Steps that belong together. ``kind`` is ``None`` for one without weights: pooling, or a last activation."""

    steps: tuple[Step, ...]
    kind: type[nn.Module] | None

    @property
    def start(self) -> int:
        return self.steps[0].start

    @property
    def end(self) -> int:
        return self.steps[-1].end


@dataclass(frozen=True)
class Layout:
    """What :func:`find_layout` finds: the blocks of each stage up to the last map, and the classifier."""

    trace: Trace
    stages: tuple[tuple[Block, ...], ...]
    end: int
    """The last value with a resolution: the feature map that the network pools."""
    head: Head

    @property
    def num_classes(self) -> int:
        return self.trace.shapes[self.trace.output][1]

    def repeated(self) -> list[Block]:
        """The blocks of the most frequent kind; a fork given as a number counts these."""
        blocks = [block for stage in self.stages for block in stage if block.kind]
        most = Counter(block.kind for block in blocks).most_common(1)
        return [block for block in blocks if most and block.kind is most[0][0]]


def channels_first(shape: tuple[int, ...], images: tuple[int, ...]) -> bool:
    """Whether ``shape`` is [B, C, H, W] rather than [B, H, W, C]: its sides are in proportion to the images'."""
    aspect = images[2] / images[3]
    _, first, second, third = shape
    return abs(math.log(second / third / aspect)) <= abs(math.log(first / second / aspect))


def resolution(shape: tuple[int, ...], images: tuple[int, ...]) -> tuple[int, int] | None:
    """Height and width of a feature map; ``None`` for anything else, such as tokens."""
    if len(shape) != 4:
        return None
    return shape[2:] if channels_first(shape, images) else shape[1:3]


def _shrinks(trace: Trace, start: int, end: int) -> float:
    """How many times shorter the sides are at ``end`` than at ``start``; 1 if either is no feature map."""
    before, after = (resolution(trace.shapes[value], trace.shapes[0]) for value in (start, end))
    return math.sqrt(math.prod(before) / math.prod(after)) if before and after else 1.0


def _chain(trace: Trace, start: int, end: int, within: Call | None) -> list[Step]:
    """The largest modules (other than ``within`` itself) and the functions that lead from one value to another."""
    cuts = [value for value in trace.cuts if start <= value <= end]
    leading: dict[int, Step] = {}  # start value -> the module that leads farthest
    for call in trace.inside(within):
        if call.module and (span := _span(call, cuts)):
            first, last = span
            best = leading.get(first)
            if last > (best.end if best else first):  # a module that returns its input leads nowhere
                leading[first] = Step(first, last, module=call.module)
    steps: list[Step] = []
    value = start
    while value != end:
        if value in leading:
            steps.append(leading[value])
        else:
            after = cuts[cuts.index(value) + 1]
            function = trace.functions[trace.created[after]]
            tensors = [leaf for leaf in tree_leaves((function.args, function.kwargs)) if isinstance(leaf, Tensor)]
            ours = {trace.objects[value], *trace.named}  # that value and the network's own parameters
            lone = function.inputs == (value,) and tensors and all(id(tensor) in ours for tensor in tensors)
            steps.append(Step(value, after, function=function if lone else None))
        value = steps[-1].end
    return steps


def _span(call: Call, cuts: Collection[int]) -> tuple[int, int] | None:
    """The cut that a run starts from and the one that it gives; ``None`` where it does not lead from cut to cut."""
    if len(call.inputs) == 1 and call.inputs[0] in cuts and call.output is not None and call.output in cuts:
        return call.inputs[0], call.output
    return None


def _call(trace: Trace, step: Step) -> Call:
    return next(c for c in trace.modules if (c.module, c.inputs, c.output) == (step.module, (step.start,), step.end))


def _composed(model: nn.Module, step: Step) -> nn.Module | None:
    """The module of a step if it is made of modules and has weights; ``None`` for a single layer."""
    if step.module is None:
        return None
    module = model.get_submodule(step.module)
    return module if next(module.children(), None) is not None and has_weights(module) else None


def _skipping(model: nn.Module, trace: Trace) -> set[type[nn.Module]]:
    """The classes of modules with a skip connection or parallel paths: these are blocks, not rows of blocks."""
    classes: set[type[nn.Module]] = set()
    cuts = set(trace.cuts)
    for call in trace.modules:
        span = _span(call, cuts)
        if not call.module or span is None:
            continue
        kind = type(model.get_submodule(call.module))
        if kind not in classes and not issubclass(kind, nn.Sequential):
            steps = _chain(trace, *span, call)
            if any(step.module is None and step.function is None for step in steps):
                classes.add(kind)
    return classes


def _opens(model: nn.Module, trace: Trace, step: Step, steps: list[Step]) -> bool:
    """Whether a module without skip connection is a row of blocks and not one block, judged by the steps inside it.

    It is a row if it spans several stages, if two modules of one kind follow each other in it, or if it is a
    ``Sequential`` of more than single layers (a convolution with its norm and activation is one block).
    """
    if _shrinks(trace, step.start, step.end) >= SEVERAL:
        return True
    modules = [_composed(model, inner) for inner in steps]
    if isinstance(_composed(model, step), nn.Sequential):
        return any(module is not None for module in modules)
    if any(before is not None and type(before) is type(after) for before, after in pairwise(modules)):
        return True
    rows = [list(module.children()) for module in modules if type(module) is nn.Sequential]
    return any(len({type(block) for block in row}) == 1 and next(row[0].children(), None) for row in rows)


def _reshapes(trace: Trace, step: Step, steps: list[Step]) -> bool:
    """Whether functions inside a module take fixed sizes of a feature map; such a module must stay whole."""
    names = {getattr(inner.function.function, "__name__", "") for inner in steps if inner.function}
    maps = all(resolution(trace.shapes[value], trace.shapes[0]) for value in (step.start, step.end))
    small = _shrinks(trace, step.start, step.end) < SEVERAL
    return maps and small and bool(names & {"reshape", "view", "expand"})


def _holds(model: nn.Module, trace: Trace, step: Step, steps: list[Step], blocks: set[type[nn.Module]]) -> bool:
    """Whether a module spans several stages, or holds a row of blocks and joins paths too (a ViT's encoder)."""
    inner = [model.get_submodule(step.module) for step in steps if step.module]
    rows = [list(module.children()) for module in inner if type(module) is nn.Sequential]
    rows += [[module for module in inner if type(module) in blocks]]
    alike = any(len(row) > 1 and {type(block) for block in row} <= blocks for row in rows)
    return alike or _shrinks(trace, step.start, step.end) >= SEVERAL


def _unfold(model: nn.Module, trace: Trace, steps: list[Step], blocks: set[type[nn.Module]]) -> list[Step]:
    """The steps with every row of blocks replaced by its blocks; ``blocks`` are the classes that are one block."""
    unfolded = []
    for step in steps:
        module = _composed(model, step)
        if module is not None:
            inner = _chain(trace, step.start, step.end, _call(trace, step))
            whole = type(module) in blocks and not _holds(model, trace, step, inner, blocks)
            whole = whole or _reshapes(trace, step, inner)
            if not whole and _opens(model, trace, step, inner):
                unfolded += _unfold(model, trace, inner, blocks)
                continue
        unfolded.append(step)
    return unfolded


def _blocks(model: nn.Module, trace: Trace, steps: list[Step]) -> list[Block]:
    """Group single layers: a convolution begins a block, and the norm and activation after it belong to it."""
    blocks: list[list[Step]] = []
    kinds: list[type[nn.Module] | None] = []
    open_block = False
    for step in steps:
        module = model.get_submodule(step.module) if step.module else None
        gap = step.module is None and step.function is None
        weights = gap or (module is not None and has_weights(module))
        if open_block and not weights and _shrinks(trace, step.start, step.end) < DROP:
            blocks[-1].append(step)
            continue
        blocks.append([step])
        kinds.append((type(module) if module is not None else nn.Module) if weights else None)
        open_block = weights and not gap and _composed(model, step) is None
    return [Block(tuple(steps), kind) for steps, kind in zip(blocks, kinds, strict=True)]


def _stages(trace: Trace, blocks: list[Block]) -> list[list[Block]]:
    """Blocks between drops of the resolution. Pooling alone is no stage: it joins the next one, or the last."""
    stages: list[list[Block]] = [[]]
    for block in blocks:
        if _shrinks(trace, block.start, block.end) >= DROP and any(b.kind for b in stages[-1]):
            stages.append([])
        stages[-1].append(block)
    if len(stages) > 1 and not any(block.kind for block in stages[-1]):
        pooling = stages.pop()
        stages[-1] += pooling
    return [stage for stage in stages if stage]


def find_layout(model: nn.Module, trace: Trace) -> Layout:
    """Find the stages of ``model`` in its trace.

    Raises:
        ValueError: there is no feature map to pool, or it has only one pixel before the pooling.
    """
    images = trace.shapes[0]
    head = find_head(model, trace)
    maps = [value for value in trace.cuts if 0 < value <= head.start and _pixels(trace.shapes[value], images) > 1]
    if not maps:
        raise UserError(
            f"{type(model).__name__} has no feature map that all its data passes through: give your own branches, "
            "branches={name: (name of the module to fork at, branch)}"
        )
    _refuse_one_pixel(model, trace, maps[-1], head.start)
    steps = _unfold(model, trace, _chain(trace, 0, maps[-1], None), _skipping(model, trace))
    stages = _stages(trace, _blocks(model, trace, steps))
    return Layout(trace, tuple(map(tuple, stages)), maps[-1], head)


def _pixels(shape: tuple[int, ...], images: tuple[int, ...]) -> int:
    """The number of pixels of a feature map, or of tokens; 0 for anything else."""
    return math.prod(resolution(shape, images) or (shape[1:2] if len(shape) == 3 else (0,)))


def _refuse_one_pixel(model: nn.Module, trace: Trace, end: int, bound: int) -> None:
    """``ValueError`` if layers with weights, not pooling, shrink the map to one pixel: the images are too small."""
    size = resolution(trace.shapes[end], trace.shapes[0])
    after = _chain(trace, end, trace.output, None)[0] if size and max(size) <= 2 else None
    if after and after.module and after.end <= bound and has_weights(model.get_submodule(after.module)):
        H, W = trace.shapes[0][2:]
        raise UserError(
            f"input_size is {H}x{W}: too small, the feature map of {type(model).__name__} has one pixel after "
            f"{after.module}. Set a larger one, such as {2 * H}"
        )
