"""What a network does with a small batch: which modules and functions run, and which values all data passes through.

Legend: B batch, C channels, H height, W width, K classes, N tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fastdhm.errors import UserError, first_line
from fastdhm.models.base.copies import copied, on_meta

M = TypeVar("M", bound=nn.Module)
Found = TypeVar("Found")
BATCH = 2  # BatchNorm refuses to train on one image


@dataclass
class Call:
    """One run of a module, or of a function (``module`` is ``None``). Values are numbered as they are created."""

    module: str | None
    inputs: tuple[int, ...]
    depth: int = 0
    """The number of modules around it."""
    output: int | None = None
    """``None`` if it did not return exactly one tensor."""
    function: Callable | None = None
    within: str = ""
    """The innermost module in which a function runs."""
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)


@dataclass
class Trace:
    """The record of one run of a network.

    ``cuts`` are the values that all data passes through, in order. Function ``created[value]`` created a value; -1
    stands for the images.
    """

    shapes: list[tuple[int, ...]]
    objects: list[int]
    """Identity of the tensor that holds a value; an in-place function makes a new value in the old tensor."""
    created: list[int]
    changed: list[bool]
    """Whether a value was made in place, in a tensor that held another one. Dropout in evaluation changes nothing."""
    functions: list[Call]
    modules: list[Call]
    cuts: list[int]
    output: int
    named: dict[int, str]
    """Identity -> name of the parameters and buffers of the network that ran; they live as long as the calls."""

    def runs(self, module: str) -> int:
        """How often the module ran."""
        return sum(call.module == module for call in self.modules)

    def at_last(self, value: int) -> int:
        """The value that the same tensor holds after the run, when in-place functions have changed it."""
        same = self.objects[value]
        return max((cut for cut in self.cuts if self.objects[cut] == same and self.changed[cut]), default=value)

    def inside(self, call: Call | None) -> list[Call]:
        """The modules that ran inside a module; all modules for ``None``."""
        if call is None:
            return self.modules
        first = next(i for i, other in enumerate(self.modules) if other is call) + 1
        return list(takewhile(lambda other: other.depth > call.depth, self.modules[first:]))


class _Recorder(TorchFunctionMode):
    """Numbers every tensor that comes from the images and records the function that makes it."""

    def __init__(self, images_BCHW: Tensor):
        super().__init__()
        self.values: dict[int, int] = {}
        self.alive: list[Tensor] = []  # so that no identity is used twice
        self.shapes: list[tuple[int, ...]] = []
        self.objects: list[int] = []
        self.created: list[int] = []
        self.changed: list[bool] = []
        self.versions: dict[int, int] = {}
        self.functions: list[Call] = []
        self.modules: list[Call] = []
        self.open: list[Call] = []
        self.add(images_BCHW, -1)

    def add(self, tensor: Tensor, function: int) -> int:
        value = self.values[id(tensor)] = len(self.shapes)
        self.shapes.append(tuple(tensor.shape))
        self.alive.append(tensor)
        self.objects.append(id(tensor))
        self.created.append(function)
        self.changed.append(self.versions.get(id(tensor), tensor._version) != tensor._version)
        self.versions[id(tensor)] = tensor._version
        return value

    def known(self, tree: object) -> tuple[int, ...]:
        found = [self.values[id(leaf)] for leaf in tree_leaves(tree) if id(leaf) in self.values]
        return tuple(dict.fromkeys(found))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        within = (self.open[-1].module if self.open else None) or ""
        call = Call(None, self.known((args, kwargs)), function=func, within=within, args=args, kwargs=kwargs)
        out = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if call.inputs and tensors:
            self.record(call, tensors)
        return out

    def record(self, call: Call, tensors: list[Tensor]) -> None:
        made = [self.add(tensor, len(self.functions)) for tensor in tensors]
        call.output = made[0] if len(made) == 1 else None
        self.functions.append(call)

    def enter(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self.open.append(Call(name, self.known((args, kwargs)), depth=len(self.open)))
            self.modules.append(self.open[-1])

        return hook

    def leave(self, module: nn.Module, args: tuple, output: object) -> None:
        call = self.open.pop()
        if isinstance(output, Tensor):
            hidden = id(output) not in self.values  # made by something that torch does not show, such as a custom op
            if hidden and call.inputs:
                self.record(Call(None, call.inputs, within=call.module or ""), [output])
            call.output = self.values.get(id(output))


def _cuts(recorder: _Recorder) -> Iterator[int]:
    """Values after whose creation no older value is used: all later values are computed from them."""
    last_use = list(recorder.created)
    for position, call in enumerate(recorder.functions):
        for value in call.inputs:
            last_use[value] = position
    reach = -1
    made: dict[int, list[int]] = {}
    for value, position in enumerate(recorder.created):
        made.setdefault(position, []).append(value)
    for position in range(-1, len(recorder.functions)):
        if len(made[position]) == 1 and reach <= position:
            yield made[position][0]
        reach = max(reach, *(last_use[value] for value in made[position]))


def probe(model: M, size_CHW: tuple[int, int, int], run: Callable[[M, Tensor], Found]) -> Found:
    """``run(copy, images)`` on a copy without data, or on a full copy if the network needs data to run.

    The network, its statistics and the random numbers do not change. ``UserError`` if neither copy runs.
    """
    try:
        like = next(model.parameters(), torch.empty(0))
        copies = [lambda: (on_meta(model), torch.device("meta")), lambda: (copied(model), like.device)]
        for make in copies:
            network, device = make()
            try:
                with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
                    return run(network, torch.zeros(BATCH, *size_CHW, device=device, dtype=like.dtype))
            except UserError:
                raise
            except Exception as failed:  # any error of the network's own forward
                error = failed
    except UserError:
        raise
    except Exception as failed:  # any error of the network's parts when they are copied
        raise UserError(f"{type(model).__name__} cannot be copied ({failed}): attach needs a copy of it") from failed
    name, why = type(model).__name__, first_line(error).rstrip(".")
    if isinstance(error, TypeError) and "required" in str(error):  # positional arguments beside the images
        raise UserError(
            f"{name} does not run on images alone: {why}. Wrap it in a module whose forward takes images and returns "
            "logits"
        ) from error
    raise UserError(
        f"{name} does not run on images of shape {size_CHW}: {why}. "
        "Set input_size=(channels, height, width) to a size that it takes"
    ) from error


def trace(model: nn.Module, size_CHW: tuple[int, int, int]) -> Trace:
    """Run a copy of ``model`` on images of that size and record what happens.

    Raises:
        ValueError: it does not run, or does not return logits [B, K], in training or in evaluation.
    """
    name = type(model).__name__

    def run(network: nn.Module, images_BCHW: Tensor) -> Trace:
        if images_BCHW.is_meta:
            _check_logits(name, "training", network.train()(images_BCHW))
        network.eval()
        recorder = _Recorder(images_BCHW)
        for path, module in network.named_modules():
            module.register_forward_pre_hook(recorder.enter(path), with_kwargs=True)
            module.register_forward_hook(recorder.leave)
        with recorder:
            logits_BK = network(images_BCHW)
        _check_logits(name, "evaluation", logits_BK)
        output = recorder.values[id(logits_BK)]
        cuts = [value for value in _cuts(recorder) if recorder.created[value] <= recorder.created[output]]
        return Trace(
            recorder.shapes, recorder.objects, recorder.created, recorder.changed, recorder.functions,
            recorder.modules, cuts, output,
            {id(tensor): name for name, tensor in (*network.named_parameters(), *network.named_buffers())},
        )  # fmt: skip

    return probe(model, size_CHW, run)


def _check_logits(name: str, mode: str, output: object) -> None:
    if not isinstance(output, Tensor):
        raise UserError(
            f"{name} returns a {type(output).__name__} in {mode}: must be one tensor of logits. Switch off its other "
            "outputs (such as aux_logits=False), or wrap it in a module that returns the logits"
        )
    if output.ndim != 2 or len(output) != BATCH:
        raise UserError(
            f"{name} returns {tuple(output.shape)} for {BATCH} images in {mode}: must be logits [B, K], a row for each "
            "image and a column for each class"
        )
