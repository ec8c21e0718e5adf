"""The training forward pass by our own ops: 3x3 convolutions, and each batch norm with the residual and relu after it.

The network is traced by torch.fx into straight-line code over the same parameters; nothing of the network itself
changes. On a GPU torch.compile does this and more; on a CPU this needs no compiler and no waiting, and is faster.
"""

import itertools
import operator
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module

from fastdhm.models import BranchedModel
from fastdhm.models.recompute import recomputed
from fastdhm.ops import batch_norm_act as norms
from fastdhm.ops import conv3x3 as convolutions

ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
RELU = (F.relu, torch.relu, torch.relu_, "relu", "relu_")


class NormAct(nn.Module):
    """A batch norm of a network, the sum with a residual and the relu that follow it."""

    def __init__(self, norm: nn.BatchNorm2d, relu: bool):
        super().__init__()
        self.norm, self.relu = norm, relu

    def forward(self, x_BCHW: Tensor, residual_BCHW: Tensor | None = None) -> Tensor:
        norm = self.norm
        if norm.training and norms.why_not(x_BCHW, norm.weight, residual_BCHW) is None:
            norm.num_batches_tracked.add_(1)
            return norms.batch_norm_act(
                x_BCHW, norm.running_mean, norm.running_var, norm.weight, norm.bias, residual_BCHW,
                momentum=norm.momentum, eps=norm.eps, relu=self.relu,
            )  # fmt: skip
        y_BCHW = norm(x_BCHW)
        y_BCHW = y_BCHW if residual_BCHW is None else y_BCHW + residual_BCHW
        return F.relu(y_BCHW) if self.relu else y_BCHW


class Conv3x3(nn.Module):
    """A 3x3 convolution of a network that moves by one pixel and keeps the size."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight_KC33, kind = self.conv.weight, x_BCHW.device.type
        if torch.is_autocast_enabled(kind) and x_BCHW.is_floating_point() and x_BCHW.dtype != torch.float64:
            x_BCHW = x_BCHW.to(torch.get_autocast_dtype(kind))
        if convolutions.why_not(x_BCHW, weight_KC33) is None and convolutions.pays(x_BCHW):
            return convolutions.conv3x3(x_BCHW, weight_KC33)
        return self.conv(x_BCHW)


class FusedForward:
    """``(image_BCHW, active) -> logits_ABK`` as the model gives them, by fused ops, with the gradients of the same.

    Traced at the first call with each set of branches and of modules in training mode. Where a network's forward cannot
    be traced, the model itself runs, and ``reason`` says why.
    """

    def __init__(self, model: BranchedModel):
        self.model = model
        self.reason: str | None = None  # why some call is not fused
        self.traced: dict[tuple, Callable[[Tensor], Tensor]] = {}

    def __call__(self, image_BCHW: Tensor, active: tuple[str, ...] | None = None) -> Tensor:
        return self._traced(tuple(self.model.branches) if active is None else active)(image_BCHW)

    def describe(self, active: tuple[str, ...]) -> str:
        """In words, whether the norms of the network with these branches are fused, or why not."""
        self._traced(active)
        return "norms fused" if self.reason is None else f"norms not fused ({self.reason})"

    def _traced(self, active: tuple[str, ...]) -> Callable[[Tensor], Tensor]:
        key = (active, *(module.training for module in self.model.modules()))
        if key not in self.traced:
            self.traced[key] = self._trace(active)
        return self.traced[key]

    def _trace(self, active: tuple[str, ...]) -> Callable[[Tensor], Tensor]:
        chosen = _Chosen(self.model, active)
        drawn = torch.get_rng_state(), random.getstate()
        try:
            graph = _Tracer().trace(chosen)
        except Exception as error:  # whatever a network's own forward may do with what is no tensor yet
            self.reason = f"its forward cannot be traced: {(str(error) or type(error).__name__).splitlines()[0]}"
            return chosen
        if not torch.equal(drawn[0], torch.get_rng_state()) or drawn[1] != random.getstate():
            torch.set_rng_state(drawn[0])
            random.setstate(drawn[1])
            self.reason = "its forward draws random numbers that a trace would freeze"
            return chosen
        return recompute_groups(fuse(chosen, graph))


class _Chosen(nn.Module):
    """A model with its set of branches."""

    def __init__(self, model: BranchedModel, active: tuple[str, ...]):
        super().__init__()
        self.model, self.active = model, active

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.model(image_BCHW, self.active)


class _Tracer(fx.Tracer):
    """Traces hooks too, by which the branches get their features: torch.fx leaves out those of the modules it enters
    not. A node of modules that are computed again in the backward pass knows its ``group`` of them. A forward that is
    left by an exception, as the trunk of a branch alone is, can be caught outside of it."""

    group: nn.Module | None = None

    def create_node(self, *args, **kwargs):
        node = super().create_node(*args, **kwargs)
        node.meta["group"] = self.group
        return node

    def call_module(self, module, forward, args, kwargs):
        entered, group = self.module_stack.copy(), self.group
        try:
            output = super().call_module(module, forward, args, kwargs)
        except Exception:
            self.module_stack, self.group = entered, group
            raise
        if self.is_leaf_module(module, self.path_of_module(module)):
            for hook in module._forward_hooks.values():
                hook(module, args, output)
        return output


def fuse(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The graph as a module on the parameters of ``root``, every batch norm with what follows it as one call."""
    parts = dict(root.named_modules())
    holder: dict[str, object] = {}
    for number, norm in enumerate([node for node in graph.nodes if _is_norm(node, parts)]):
        replaced, residual = _chain(norm, parts)
        name = f"norm_act_{number}"
        holder[name] = NormAct(parts[norm.target], relu=_is_relu(replaced[-1], parts))
        with graph.inserting_before(replaced[-1]):
            call = graph.call_module(name, (norm.args[0], *([] if residual is None else [residual])))
            call.meta["group"] = norm.meta["group"]
        replaced[-1].replace_all_uses_with(call)
        for node in reversed(replaced):
            graph.erase_node(node)
    for node in graph.nodes:
        if node.op == "call_module" and node.target not in holder:
            part = parts[node.target]
            holder[node.target] = Conv3x3(part) if _is_conv3x3(part) else part
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


def _is_conv3x3(part: nn.Module) -> bool:
    if type(part) is not nn.Conv2d or part.bias is not None or part.padding_mode != "zeros":
        return False
    shape = part.kernel_size, part.stride, part.padding, part.dilation, part.groups
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1)


def _is_norm(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    if node.op != "call_module" or type(parts[node.target]) is not nn.BatchNorm2d:
        return False
    norm = parts[node.target]
    return norm.affine and norm.track_running_stats and norm.momentum is not None and len(node.args) == 1


def _is_relu(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(parts.get(node.target)) is nn.ReLU
    return node.target in RELU


def _chain(norm: fx.Node, parts: dict[str, nn.Module]) -> tuple[list[fx.Node], fx.Node | None]:
    """The nodes that one op can do, a norm with the sum and the relu that alone use it, and what the sum adds."""
    chain, residual = [norm], None
    user = _only_user(norm)
    if user is not None and user.op != "call_module" and user.target in ADD:
        others = [arg for arg in user.args if arg is not norm]
        if len(user.args) == 2 and not user.kwargs and len(others) == 1 and isinstance(others[0], fx.Node):
            residual = others[0]
            chain.append(user)
            user = _only_user(user)
    if user is not None and _is_relu(user, parts):
        chain.append(user)
    return chain, residual


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
