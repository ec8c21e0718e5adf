"""The training forward pass by our own ops: convolutions, each batch norm with the residual and relu after it, and
shortcuts that pool.

The network is traced by torch.fx into straight-line code over the same parameters; nothing of the network itself
changes. On a GPU torch.compile does this and more; on a CPU this needs no compiler and no waiting, and is faster.
"""

import itertools
import operator
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module

from fastdhm.engine.fast.trace import IN_PLACE, Tracer, has_hooks, hooks, is_plain
from fastdhm.errors import first_line
from fastdhm.models import BranchedModel
from fastdhm.models.base.recompute import recomputed
from fastdhm.ops import _extension
from fastdhm.ops import batch_norm_act as norms
from fastdhm.ops import conv2d as plain_convolutions
from fastdhm.ops import conv3x3 as convolutions
from fastdhm.ops import shortcut as shortcuts

ADD_IN_PLACE = (IN_PLACE["__iadd__"], operator.iadd, "add_")
ADD = (operator.add, torch.add, "add", *ADD_IN_PLACE)
RELU = (F.relu, torch.relu, torch.relu_, "relu", "relu_")


M = TypeVar("M", bound=nn.Module)


class NormAct(nn.Module):
    """A batch norm of a network, the sum with a residual and the relu that follow it."""

    def __init__(self, norm: nn.BatchNorm2d, relu: bool):
        super().__init__()
        self.norm, self.relu = norm, relu

    def forward(self, x_BCHW: Tensor, residual_BCHW: Tensor | float | None = None) -> Tensor:
        norm = self.norm
        if norm.training and norm.momentum is not None and (residual_BCHW is None or isinstance(residual_BCHW, Tensor)):
            mean, variance, steps = norm.running_mean, norm.running_var, norm.num_batches_tracked
            assert mean is not None and variance is not None and steps is not None  # see _is_norm
            steps.add_(1)
            return norms.batch_norm_act(
                x_BCHW, mean, variance, norm.weight, norm.bias, residual_BCHW,
                momentum=norm.momentum, eps=norm.eps, relu=self.relu,
            )  # fmt: skip
        y_BCHW = norm.forward(x_BCHW)
        y_BCHW = y_BCHW if residual_BCHW is None else y_BCHW + residual_BCHW
        return F.relu(y_BCHW) if self.relu else y_BCHW


class Conv3x3(nn.Module):
    """A 3x3 convolution of a network that moves by one pixel and keeps the size."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return convolutions.conv3x3(x_BCHW, self.conv.weight)


class Conv2d(nn.Module):
    """Any other convolution of a network, of whole images by a whole kernel."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x_BCHW: Tensor) -> Tensor:
        padding = self.conv.padding
        assert not isinstance(padding, str)  # see _is_conv
        return plain_convolutions.conv2d(x_BCHW, self.conv.weight, self.conv.stride, padding)


class Shortcut(nn.Module):
    """A pooling by two and the channels of zeros that a network adds to it."""

    def __init__(self, extra_channels: int):
        super().__init__()
        self.extra_channels = extra_channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return shortcuts.shortcut(x_BCHW, x_BCHW.shape[1] + self.extra_channels)


class FusedForward:
    """``(image_BCHW, active) -> logits_ABK`` as the model gives them, by fused ops, with the gradients of the same.

    Or what ``network`` gives, which runs the model in another way, such as up to its classifiers.

    Traced at the first call with each set of branches, and of modules in training mode and without hooks: from then on
    all else that its forward reads, a plain attribute or which modules there are, is as it was then. Where a network's
    forward cannot be traced, or there are no fused ops, the model itself runs; :meth:`why_not` says why.
    """

    def __init__(self, model: BranchedModel, network: nn.Module | None = None):
        self.model, self.network = model, network or model
        self.modules = tuple(model.modules())  # to find them anew at each step costs as much as a norm
        self.traced: dict[tuple, tuple[Callable[[Tensor], Any], str | None]] = {}

    def __call__(self, image_BCHW: Tensor, active: tuple[str, ...] | None = None) -> Any:
        try:
            return self._traced(active)[0](image_BCHW)
        finally:
            self.model.drop_features()

    def why_not(self, active: tuple[str, ...] | None = None) -> str | None:
        """Why the network with these branches (default: all) is not run by fused ops; None if it is."""
        return self._traced(active)[1]

    def describe(self, active: tuple[str, ...] | None = None) -> str:
        """What is fused in the network with these branches, in words, or why nothing is."""
        why_not = self.why_not(active)
        return f"no fused ops ({why_not})" if why_not else "norms and convolutions by fused ops"

    def _traced(self, active: tuple[str, ...] | None) -> tuple[Callable[[Tensor], Any], str | None]:
        active = tuple(self.model.branches) if active is None else active
        key = (active, *((module.training, is_plain(module)) for module in self.modules))
        if key not in self.traced:
            self.traced[key] = self._trace(active)
        return self.traced[key]

    def _trace(self, active: tuple[str, ...]) -> tuple[Callable[[Tensor], Any], str | None]:
        chosen = _Chosen(self.network, active)
        if not _extension.available():
            return chosen, _extension.reason()
        before = torch.get_rng_state(), random.getstate()
        try:
            graph = Tracer().trace(chosen)
            drawn = not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate()
        except Exception as error:  # whatever a network's own forward may do with what is no tensor yet
            return chosen, f"its forward cannot be traced: {first_line(error)}"
        finally:
            torch.set_rng_state(before[0])
            random.setstate(before[1])
        if drawn:
            return chosen, "its forward draws random numbers that a trace would freeze"
        fused = fuse(chosen, graph)
        if not any(isinstance(part, (NormAct, Conv2d, Conv3x3)) for part in fused.children()):
            return chosen, "it has no norm or convolution that they know"
        return recompute_groups(fused), None


class _Chosen(nn.Module):
    """A model with its set of branches."""

    def __init__(self, model: nn.Module, active: tuple[str, ...]):
        super().__init__()
        self.model, self.active = model, active

    def forward(self, image_BCHW: Tensor) -> Any:
        return self.model(image_BCHW, self.active)


class _Followed(nn.Module):
    """A module of a network without its hooks, which the tracer has followed."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, *args, **kwargs):
        return self.part.forward(*args, **kwargs)


def fuse(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The graph as a module on the parameters of ``root``, with every batch norm and what follows it as one call."""
    parts = dict(root.named_modules())
    holder: dict[str, object] = {}
    called = Counter(node.target for node in graph.nodes if node.op == "call_module")
    # A norm that is called twice moves its statistics in the order of its calls, so they stay where they are.
    for number, norm in enumerate([node for node in graph.nodes if _is_norm(node, parts) and called[node.target] == 1]):
        replaced, residual = _chain(norm, parts)
        name = f"norm_act_{number}"
        holder[name] = NormAct(parts[norm.target], relu=_is_relu(replaced[-1], parts))
        with graph.inserting_before(norm if residual is None else replaced[1]):  # where the residual is what is added
            call = graph.call_module(name, (norm.args[0], *([] if residual is None else [residual])))
            call.meta["group"] = norm.meta["group"]
        replaced[-1].replace_all_uses_with(call)
        for node in reversed(replaced):
            graph.erase_node(node)
    for number, node in enumerate([node for node in graph.nodes if _is_conv(node, parts)]):
        name, conv = f"conv_{number}", parts[node.target]
        holder[name], node.target = (Conv3x3 if _keeps_size(conv) else Conv2d)(conv), name
    for number, pad in enumerate([node for node in graph.nodes if _is_shortcut(node)]):
        name, pool = f"shortcut_{number}", pad.args[0]
        holder[name] = Shortcut(pad.args[1][-1])
        with graph.inserting_before(pad):
            call = graph.call_module(name, (pool.args[0],))
            call.meta["group"] = pad.meta["group"]
        pad.replace_all_uses_with(call)
        graph.erase_node(pad)
        graph.erase_node(pool)
    for node in graph.nodes:
        if node.op == "call_module" and node.target not in holder:
            part = parts[node.target]
            holder[node.target] = part if has_hooks(part) or not hooks(part) else _Followed(part)
        elif node.op == "get_attr":
            holder[node.target] = operator.attrgetter(node.target)(root)
    return fx.GraphModule(holder, graph)


class _Recomputed(nn.Module):
    """A part of a traced network whose activations are not kept."""

    def __init__(self, part: fx.GraphModule):
        super().__init__()
        self.part = part

    def forward(self, *args: Tensor) -> Tensor | tuple[Tensor, ...]:
        return recomputed(self.part, *args)


def recompute_groups(traced: fx.GraphModule) -> fx.GraphModule:
    """``traced`` with each group that its nodes know as a part of its own, computed again in the backward pass."""
    nodes = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
    if not any(node.meta["group"] for node in nodes):
        return traced
    runs = [(group, list(members)) for group, members in itertools.groupby(nodes, lambda node: node.meta["group"])]
    number_of = {node: number for number, (_, members) in enumerate(runs) for node in members}
    split = split_module(traced, traced, number_of.__getitem__, keep_original_order=True)
    for number, (group, _) in enumerate(runs):
        part = getattr(split, f"submod_{number}", None)  # none where it would hold nothing but parameters
        if group is not None and part is not None:
            setattr(split, f"submod_{number}", _Recomputed(part))
    return split


def _plainly_called(node: fx.Node, parts: dict[str, nn.Module], kind: type[M]) -> M | None:
    """The module of just this kind that a node calls on one tensor; ``None`` where it does anything else."""
    part = parts.get(str(node.target)) if node.op == "call_module" else None
    if not isinstance(part, kind) or type(part) is not kind:
        return None
    return part if is_plain(part) and len(node.args) == 1 and not node.kwargs else None


def _is_conv(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    conv = _plainly_called(node, parts, nn.Conv2d)
    if conv is None:
        return False
    plain = (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
    return plain and conv.bias is None and not isinstance(conv.padding, str)


def _keeps_size(conv: nn.Conv2d) -> bool:
    return (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))


def _is_shortcut(node: fx.Node) -> bool:
    """Whether a node pads with channels what an average pooling by two, rounding up, made for it alone."""
    zeros = node.kwargs.get("mode") == "constant" and node.kwargs.get("value") is None  # as torch.fx writes defaults
    if node.target is not F.pad or len(node.args) != 2 or not zeros or not isinstance(node.args[0], fx.Node):
        return False
    given: tuple[Any, ...] = node.args
    pool, padding = given
    rounding_up = {"ceil_mode": True, "count_include_pad": False}
    pools = pool.target is F.avg_pool2d and tuple(pool.args[1:]) == (2,) and pool.kwargs == rounding_up
    return pools and _only_user(pool) is node and padding[:5] == (0,) * 5 and len(padding) == 6 and padding[5] >= 0


def _is_norm(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    norm = _plainly_called(node, parts, nn.BatchNorm2d)
    return norm is not None and norm.affine and norm.track_running_stats and norm.momentum is not None


def _is_relu(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    return _plainly_called(node, parts, nn.ReLU) is not None if node.op == "call_module" else node.target in RELU


def _chain(norm: fx.Node, parts: dict[str, nn.Module]) -> tuple[list[fx.Node], fx.Node | None]:
    """The nodes that one op can do, a norm with the sum and the relu that alone use it, and what the sum adds."""
    chain, residual = [norm], None
    user = _only_user(norm)
    if user is not None and _is_sum(user):
        others = [arg for arg in user.args if arg is not norm]
        written = user.target in ADD_IN_PLACE and user.args[0] is not norm  # others may read what this adds to
        if len(others) == 1 and isinstance(others[0], fx.Node) and not written:
            residual = others[0]
            chain.append(user)
            user = _only_user(user)
    if user is not None and _is_relu(user, parts):
        chain.append(user)
    return chain, residual


def _is_sum(node: fx.Node) -> bool:
    return node.op != "call_module" and node.target in ADD and len(node.args) == 2 and not node.kwargs


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
