"""Copies of a user's network: without its wrappers, with all its data, or without data."""

import copy
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from fastdhm.errors import UserError

M = TypeVar("M", bound=nn.Module)
COMPILED = "_orig_mod"  # where torch.compile keeps the original module
REMEDY = {
    "parametrizations": "torch.nn.utils.parametrize.remove_parametrizations",
    "WeightNorm": "torch.nn.utils.remove_weight_norm",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm",
}  # every other kind is of torch.nn.utils.prune
_UNWRAP = "attach to the network that it was made from"


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel and similar wrappers; a copy if only parts of it are compiled.

    Raises:
        ValueError: the network's modules do not run in Python: it is scripted, exported, lazy or quantized.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"attach takes an nn.Module, not a {type(model).__name__}: {_UNWRAP}")
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
    while COMPILED in model._modules or isinstance(model, wrappers):
        model = model.get_submodule(COMPILED if COMPILED in model._modules else "module")
    if isinstance(model, torch.fx.GraphModule):
        raise UserError(f"this {type(model).__name__} is a graph of functions without blocks: {_UNWRAP}")
    for name, part in model.named_modules():
        what = f"its part {name}" if name else f"this {type(part).__name__}"
        if isinstance(part, torch.jit.ScriptModule):
            raise UserError(f"{what} is scripted or traced, so its modules do not run in Python: {_UNWRAP}")
        if any(is_lazy(tensor) for tensor in part._parameters.values()):
            raise UserError(f"{what} is lazy and has no size yet: run the network on a batch of images first")
        if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise UserError(f"{what} is quantized and cannot be trained: attach to the network in float32")
    if any(COMPILED in part._modules for part in model.modules()):
        model = copied(model)
        for part in list(model.modules()):
            part._modules.update({name: _inner(child) for name, child in part._modules.items() if name != COMPILED})
    return model


def _inner(module: nn.Module | None) -> nn.Module | None:
    while module is not None and COMPILED in module._modules:
        module = module._modules[COMPILED]
    return module


def copied(module: M, memo: dict[int, object] | None = None) -> M:
    """A deep copy; it also copies tensors with a history that a pass left in the module, such as a normed weight."""
    memo = {} if memo is None else memo
    for part in module.modules():
        for leaf in tree_leaves({name: value for name, value in vars(part).items() if name not in _REGISTERED}):
            if isinstance(leaf, Tensor) and not leaf.is_leaf and id(leaf) not in memo:
                memo[id(leaf)] = leaf.detach().clone()
    return copy.deepcopy(module, memo)


_REGISTERED = ("_parameters", "_buffers", "_modules")


def on_meta(module: M) -> M:
    """A copy on the meta device: the same shapes, but no data and no memory."""
    memo: dict[int, object] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copied(module, memo)


def refuse_computed(module: nn.Module, name: str, what: str) -> None:
    """``ValueError`` if a layer's weights are computed from other tensors in each pass: they cannot be drawn anew."""
    for path, kind, tensor in _computed(module):
        full, weight = f"{name}.{path}".strip("."), f"'{tensor}'"
        remedy = REMEDY.get(kind, "torch.nn.utils.prune.remove")
        raise UserError(
            f"{what} cannot be made from {full}: its {tensor} is computed in each pass ({kind}). Call "
            f"{remedy}({full}, {weight}) first, and apply it again to the attached model"
        )


def _computed(module: nn.Module) -> Iterator[tuple[str, str, str]]:
    """Layer, kind and name of every weight that is not a parameter: parametrized, normed or pruned."""
    for path, layer in module.named_modules():
        if parametrize.is_parametrized(layer):
            yield path, "parametrizations", next(iter(layer.parametrizations))
        for hook in layer._forward_pre_hooks.values():
            tensor = getattr(hook, "_tensor_name", None) or getattr(hook, "name", None)
            if isinstance(tensor, str) and isinstance(vars(layer).get(tensor), Tensor):
                yield path, type(hook).__name__, tensor
