"""The layer that makes a network's logits: it is found by following the data, not by its number of outputs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fastdhm.errors import UserError
from fastdhm.models.base.trace import Call, Trace, trace

NAMES = (
    "fc",
    "classifier",
    "head",
    "heads",
    "last_linear",
)  # where networks have their classifier, or an nn.Identity in its place


@dataclass(frozen=True)
class Head:
    """Where a network's logits come from."""

    layer: str | None
    """The name of the classifier: a linear layer, or a convolution that sees one pixel."""
    start: int
    """The input of the classifier, or the logits themselves if there is none: no feature map comes after this value."""
    missing: str = ""
    """Why there is no classifier; empty if there is one."""


def find_head(model: nn.Module, trace: Trace) -> Head:
    """The last layer with a weight matrix on the way to the logits, if it alone makes them, class by class."""
    path = list(_path(trace))
    if removed := [call.module for call in trace.modules if _taken_out(model, call)]:
        return Head(None, trace.output, f"its {removed[-1]} is an Identity")
    at = next((i for i, at in enumerate(path) if any(map(_matrix, _own(trace, trace.functions[at])))), None)
    if at is None:
        return Head(None, trace.output, "no layer with weights makes its logits")
    call, tail = trace.functions[path[at]], [trace.functions[position] for position in path[:at]]
    value = trace.created.index(path[at])
    if len(call.inputs) != 1 or any(trace.created[x] < path[at] for later in tail for x in later.inputs):
        example = f", such as {call.within}" if call.within else ""
        return Head(None, trace.output, f"its logits come from several layers{example}")
    layer, K = model.get_submodule(call.within), trace.shapes[trace.output][1]
    if missing := _missing(layer, call, trace.shapes[value], K):
        return Head(None, call.inputs[0] if K in trace.shapes[value][1:] else trace.output, missing)
    for later in tail:
        if any(tensor.numel() > 1 for tensor in _own(trace, later)):
            what = later.within or getattr(later.function, "__name__", "a function")
            return Head(None, trace.output, f"{what}, which runs after its last layer {call.within}, has weights too")
    if trace.runs(call.within) != 1:
        return Head(None, call.inputs[0], f"its last layer {call.within} runs {trace.runs(call.within)} times")
    return Head(call.within, call.inputs[0])


def classifier_of(network: nn.Module, size_CHW: tuple[int, int, int]) -> str:
    """The name of the layer that makes the logits of ``network``; its input is the network's features.

    Raises:
        ValueError: the network does not run on images of that size, or has no such layer; the message says why.
    """
    head = find_head(network, trace(network, size_CHW))
    if head.layer is None:
        raise UserError(
            f"{type(network).__name__} has no classifier whose input could serve as features: {head.missing}. Give it "
            "an nn.Linear or a 1x1 convolution as its last layer"
        )
    return head.layer


def _path(trace: Trace) -> Iterator[int]:
    """The numbers of the functions that lead to the logits, from the last to the first."""
    needed = {trace.output}
    made: dict[int, list[int]] = {}
    for value, function in enumerate(trace.created):
        made.setdefault(function, []).append(value)
    for position in range(trace.created[trace.output], -1, -1):
        if needed.intersection(made[position]):
            needed.update(trace.functions[position].inputs)
            yield position


def _own(trace: Trace, call: Call) -> list[Tensor]:
    """The tensors given to a function that do not come from the images: weights, or values computed from weights."""
    seen = set(trace.objects)
    return [x for x in tree_leaves((call.args, call.kwargs)) if isinstance(x, Tensor) and id(x) not in seen]


def _matrix(tensor: Tensor) -> bool:
    return sum(size > 1 for size in tensor.shape) >= 2


def _taken_out(model: nn.Module, call: Call) -> bool:
    name = call.module or ""
    return name.rpartition(".")[2] in NAMES and type(model.get_submodule(name)) is nn.Identity


def _missing(layer: nn.Module, call: Call, shape: tuple[int, ...], num_classes: int) -> str:
    """Why ``layer``, whose function ``call`` returns ``shape``, is not a classifier; "" if it is one."""
    what = f"{call.within} ({type(layer).__name__})" if call.within else "its own forward"
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        function = getattr(call.function, "__name__", str(call.function))
        return f"its logits are made by {function} in {what}, which is neither an nn.Linear nor an nn.Conv2d"
    if isinstance(layer, nn.Linear):
        return "" if layer.out_features == num_classes else f"its last layer {what} gives {layer.out_features} values"
    alone = layer.groups == 1 and (math.prod(layer.kernel_size) == 1 or math.prod(shape[2:]) == 1)
    if layer.out_channels == num_classes and alone:
        return ""
    return f"its last layer {what} is a convolution inside the network, with {layer.out_channels} channels"
