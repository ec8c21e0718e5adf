"""Side branches for any network: built by the paper's three principles (App. A), or your own.

Legend: B batch, K classes, C channels, H height, W width.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdhm.errors import UserError
from fastdhm.models.attach.forks import find_forks, tapped_value
from fastdhm.models.attach.grow import grow
from fastdhm.models.attach.stages import Block, Layout, channels_first, find_layout, resolution
from fastdhm.models.base.branched import BranchedModel
from fastdhm.models.base.copies import copied, on_meta, refuse_computed, unwrapped
from fastdhm.models.base.trace import BATCH, Trace, probe, trace


@dataclass(frozen=True)
class Stage:
    """A stage of the trunk: its blocks at one resolution."""

    resolution: tuple[int, int] | None
    """Height and width of its output, in pixels; ``None`` for tokens."""
    channels: int
    blocks: int
    """The number of blocks of the most frequent class."""
    kind: str
    """The name of that class."""
    modules: tuple[str, str]
    """The names of its first and last module."""


@dataclass(frozen=True)
class SideBranch:
    """A branch that was attached."""

    fork: str
    """The module of the trunk whose output it takes."""
    blocks: tuple[int, ...]
    """The number of blocks in each of its stages."""
    trunk_blocks: tuple[int, ...]
    """The same for the trunk's stages from the fork on."""
    width: str
    """``2x as wide`` as the trunk, ``as wide`` (with the reason if it should be wider), or ``own``."""
    params: int
    kept: tuple[str, ...]
    """Parameters that no layer can draw anew: they start with the trunk's values."""
    thawed: tuple[str, ...] = ()
    """Classes of frozen norms in the trunk; the branch has norms that learn in their place."""


@dataclass(frozen=True)
class Summary:
    """What :func:`attach` found and built; ``str`` makes a readable page of it."""

    network: str
    image_size: tuple[int, int]
    """Height and width of the images, in pixels, in the run that found the stages."""
    params: int
    num_classes: int
    classifier: str | None
    stages: tuple[Stage, ...]
    branches: dict[str, SideBranch]

    def __str__(self) -> str:
        told = f"classifier {self.classifier}" if self.classifier else "no separate classifier layer"
        lines = [
            f"{self.network}: {self.params:,} parameters, {self.num_classes} classes ({told}), "
            "its stages at {}x{} pixels:".format(*self.image_size)
        ]
        for number, stage in enumerate(self.stages, 1):
            size = "{}x{}".format(*stage.resolution) if stage.resolution else "tokens"
            first, last = stage.modules
            span = first if first == last else f"{first} to {last}"
            lines.append(f"  stage {number}: {size}, {stage.channels} channels, {stage.blocks} x {stage.kind} ({span})")
        for name, branch in self.branches.items():
            lines.append(f"  {name} forks after {branch.fork}: {_described(branch)}, {branch.params:,} parameters")
            if branch.thawed:
                lines.append(f"    norms that learn in place of the trunk's {', '.join(branch.thawed)}")
            if branch.kept:
                more = ", ..." if len(branch.kept) > 3 else ""
                lines.append(f"    starts with the trunk's values: {', '.join(branch.kept[:3])}{more}")
        return "\n".join(lines)


def _described(branch: SideBranch) -> str:
    if branch.width == "own":
        return "your own"
    blocks, trunk = ("+".join(map(str, counts)) for counts in (branch.blocks, branch.trunk_blocks))
    return f"{blocks} blocks (trunk {trunk}), {branch.width}"


class AttachedModel(BranchedModel):
    """A :class:`BranchedModel` whose ``summary`` says what was attached."""

    def __init__(self, trunk: nn.Module, branches: Mapping, taps: Mapping[str, str], summary: Summary):
        super().__init__(trunk, branches, taps)
        self.summary = summary


def attach(
    model: nn.Module,
    num_classes: int | None = None,
    *,
    branches: Iterable[str] | Mapping[str, tuple[str, nn.Module]] = ("B1", "B2"),
    forks: Mapping[str, str | int] | Sequence[str | int] | None = None,
    input_size: int | tuple[int, ...] = 224,
    init: Callable[[nn.Module], None] | None = None,
    verbose: bool = True,
) -> AttachedModel:
    """Grow side branches from a copy of ``model``; the model itself does not change.

    A run without data finds the stages: a stage begins where the resolution drops. B1 forks before the last stage, B2
    before the second last, and so on. A branch has the network's own blocks (App. A, i), initialised anew, and every
    down-sampling after its fork (ii). B1 has twice the channels if the layers allow it; the other branches have half of
    the blocks of each stage, rounded up (iii). Each branch ends in average pooling and its own linear classifier.

    Args:
        model: images [B, C, H, W] to logits [B, K]; the trunk gets its weights.
        num_classes: K; if the network has another number, its last layer is replaced by a new one.
        branches: names, with ``B1`` nearest the top; or your own branches: name -> (name of the module to fork at, a
            module from that module's output to logits).
        forks: name of a branch -> the module after which it forks: its name, or the number of a block, from 0; or a
            list of these, B1's first. ``None``: before the last stages.
        input_size: side in pixels, (height, width) or (channels, height, width) of the images that find the stages.
        init: called on every module of every branch, as by ``nn.Module.apply``, after each layer's own
            ``reset_parameters``. ``None``: convolutions then get the paper's initialisation (He et al., ICCV 2015).
        verbose: print the summary.

    Returns:
        The branched model. ``strip()`` gives back a network of the user's own class; ``summary`` says what was done.

    Raises:
        ValueError: the network does not run at that size, does not return logits, has too few stages or no classifier
            to replace; a fork is no module or not on the path of all data; or a branch of your own does not fit.
    """
    size_CHW = _size(input_size)
    model = unwrapped(model)
    layout = find_layout(model, trace(model, size_CHW))
    classes = layout.num_classes if num_classes is None else num_classes
    trunk = _trunk(model, layout, classes)
    sides, told = _sides(layout, model, branches, forks, classes, init)
    stages = tuple(_stage(layout, model, stage) for stage in layout.stages)
    summary = Summary(type(model).__name__, size_CHW[1:], _count(trunk), classes, layout.head.layer, stages, told)
    attached = AttachedModel(trunk, sides, {name: branch.fork for name, branch in told.items()}, summary)
    _check(attached, size_CHW)
    if verbose:
        from fastdhm.system.console import Console  # rich only if there is something to say

        Console().print(str(summary))
    return attached.train(model.training)


def _trunk(model: nn.Module, layout: Layout, num_classes: int) -> nn.Module:
    """A copy of the network with that many classes."""
    trunk = copied(model)
    if num_classes < 2:
        raise UserError(f"num_classes is {num_classes}: a classifier needs at least 2 classes")
    if num_classes != layout.num_classes:
        _replace_classifier(trunk, layout, num_classes)
    return trunk


def _sides(
    layout: Layout,
    model: nn.Module,
    branches: Iterable[str] | Mapping,
    forks: Mapping | Sequence | None,
    num_classes: int,
    init: Callable | None,
) -> tuple[dict[str, nn.Module], dict[str, SideBranch]]:
    """The branches by name, with the device and dtype of the network, and the summary of each."""
    if isinstance(branches, Mapping):
        if forks is not None:
            raise UserError(
                "forks= is for branches given by name: a branch of your own comes with its fork, so leave forks= out"
            )
        built = {name: _own(layout.trace, model, name, given, num_classes) for name, given in branches.items()}
    else:
        at = find_forks(layout, model, _names(branches), forks)
        built = {name: _grown(layout, model, name, fork, num_classes, init) for name, fork in at.items()}
    like = next(model.parameters(), torch.empty(0))
    sides = {name: side.to(like.device, like.dtype) for name, (side, _) in built.items()}
    return sides, {name: told for name, (_, told) in built.items()}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _size(input_size: int | tuple[int, ...]) -> tuple[int, int, int]:
    sizes = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    sizes = (3, *sizes) if len(sizes) == 2 else sizes
    if len(sizes) != 3 or min(sizes) < 1:
        raise UserError(f"input_size is {input_size!r}: must be a side, (height, width) or (channels, height, width)")
    return sizes


def _names(branches: Iterable[str]) -> list[str]:
    names = [branches] if isinstance(branches, str) else list(dict.fromkeys(branches))
    for name in names:
        if not (name[:1] == "B" and name[1:].isdecimal() and int(name[1:])):
            raise UserError(f"branch name is {name!r}: must be B1 (nearest the top), B2, and so on")
    return sorted(names, key=lambda name: int(name[1:]))


def _own(trace: Trace, model: nn.Module, name: str, given: object, num_classes: int) -> tuple[nn.Module, SideBranch]:
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], nn.Module)):
        raise UserError(f"branch {name} is {given!r}: give (name of the module to fork at, the branch as a module)")
    fork, side = given
    shape = trace.shapes[tapped_value(trace, model, fork)]
    try:
        with torch.no_grad():
            out = on_meta(side)(torch.zeros(shape, device="meta"))
        found = f"gives {tuple(out.shape)}" if isinstance(out, Tensor) else f"returns a {type(out).__name__}"
    except Exception as error:  # any error of the branch's own forward
        out, found = None, f"does not run ({error})"
    if not isinstance(out, Tensor) or tuple(out.shape) != (shape[0], num_classes):
        raise UserError(
            f"branch {name} {found} on the output {shape} of {fork}: must give logits [B, K], here "
            f"{(shape[0], num_classes)}"
        )
    return side, SideBranch(fork, (), (), "own", _count(side), ())


def _grown(
    layout: Layout, model: nn.Module, name: str, fork: tuple[str, int], num_classes: int, init: Callable | None
) -> tuple[nn.Module, SideBranch]:
    tap, start = fork
    grown = grow(layout, model, name, start, num_classes, init)
    return grown.branch, SideBranch(
        tap, grown.blocks, grown.trunk_blocks, grown.width, _count(grown.branch), grown.kept, grown.thawed
    )


def _replace_classifier(trunk: nn.Module, layout: Layout, num_classes: int) -> None:
    """Give the trunk's classifier another number of classes and initialise it anew."""
    if layout.head.layer is None:
        raise UserError(
            f"{type(trunk).__name__} gives {layout.num_classes} logits, not {num_classes}, and its classifier cannot "
            f"be replaced: {layout.head.missing}. Build it with {num_classes} classes and leave num_classes out"
        )
    layer: Any = trunk.get_submodule(layout.head.layer)
    refuse_computed(layer, layout.head.layer, f"a classifier of {num_classes} classes")
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", num_classes)
    for name in ("weight", "bias"):
        old = getattr(layer, name)
        if old is not None:
            setattr(layer, name, nn.Parameter(old.new_zeros(num_classes, *old.shape[1:])))
    layer.reset_parameters()
    if getattr(trunk, "num_classes", None) == layout.num_classes:
        trunk.num_classes = num_classes  # type: ignore[assignment] # timm's networks and some of torchvision's have it


def _stage(layout: Layout, model: nn.Module, stage: tuple[Block, ...]) -> Stage:
    shape = layout.trace.shapes[stage[-1].end]
    first = len(shape) == 4 and channels_first(shape, layout.trace.shapes[0])
    kinds = Counter(block.kind.__name__ for block in stage if block.kind)
    kind, most = kinds.most_common(1)[0] if kinds else ("no block", 0)
    modules = [step.module for block in stage for step in block.steps if step.module]
    return Stage(
        resolution(shape, layout.trace.shapes[0]),
        shape[1] if first else shape[-1],
        most,
        kind,
        (modules[0], modules[-1]) if modules else ("", ""),
    )


def _check(attached: AttachedModel, size_CHW: tuple[int, int, int]) -> None:
    """``ValueError`` if the model with its branches does not give stacked logits."""
    K = attached.summary.num_classes

    def run(network: nn.Module, images_BCHW: Tensor) -> tuple[int, ...]:
        return tuple(network.eval()(images_BCHW).shape)

    found, expected = probe(attached, size_CHW, run), (len(attached.branch_names), BATCH, K)
    if found != expected:
        raise UserError(f"the network with its branches gives {found}: must give logits {expected}")
