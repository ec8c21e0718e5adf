"""Copies of a network's own layers: initialised anew, and changed to other numbers of channels.

Legend: B batch, C channels, H height, W width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_flatten, tree_unflatten

from fastdhm.models.base.copies import copied, on_meta
from fastdhm.models.base.initialise import init_convolutions
from fastdhm.models.base.trace import Call


class CannotFitError(Exception):
    """The channels of a layer cannot be changed, or the network does not run with other channels."""


class Replay(nn.Module):
    """A function that a network calls between its modules, with the same arguments.

    Args:
        call: the recorded run of the function, on one value that comes from the images.
        value: identity of the tensor that held that value.
        own: identity -> parameter or buffer of the network; the branch gets copies of those among the arguments.
    """

    def __init__(self, call: Call, value: int, own: dict[int, Tensor]):
        super().__init__()
        self.function = call.function
        self.name = getattr(call.function, "__name__", str(call.function))
        leaves, self.spec = tree_flatten((call.args, call.kwargs))
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.inputs = [place for place, leaf in enumerate(leaves) if id(leaf) == value]
        self.given: dict[int, str] = {}
        for place, leaf in enumerate(leaves):
            if id(leaf) in own:
                self.given[place], tensor = f"given_{place}", own[id(leaf)].detach().clone()
                if isinstance(own[id(leaf)], nn.Parameter):
                    self.register_parameter(self.given[place], nn.Parameter(tensor))
                else:
                    self.register_buffer(self.given[place], tensor)

    def forward(self, x: Tensor) -> Tensor:
        leaves = list(self.leaves)
        for place in self.inputs:
            leaves[place] = x
        for place, name in self.given.items():
            leaves[place] = getattr(self, name)
        args, kwargs = tree_unflatten(leaves, self.spec)
        if "training" in kwargs:  # the flag of dropout, recorded in evaluation
            kwargs["training"] = self.training
        if "inplace" in kwargs:  # the input may be the trunk's feature map
            kwargs["inplace"] = False
        return self.function(*args, **kwargs)  # type: ignore[misc] # None stands in the calls of modules alone

    def extra_repr(self) -> str:
        return self.name


def own_copy(module: nn.Module) -> nn.Module:
    """A copy to train. Forward hooks are removed, as they watch the trunk; pre-hooks (weight norms) stay."""
    twin = _live(copied(module))
    for part in twin.modules():
        part._forward_hooks.clear()
        for name, child in list(part.named_children()):
            setattr(part, name, _live(child))
    return twin.requires_grad_(True).train()


def is_frozen(norm: nn.Module) -> bool:
    """Whether a module is a batch norm with fixed statistics and scales, such as torchvision's FrozenBatchNorm2d."""
    return {"weight", "bias", "running_mean", "running_var"} <= norm._buffers.keys()


def _live(module: nn.Module) -> nn.Module:
    """A norm that learns in place of a frozen one; norms that have running statistics update them."""
    if isinstance(module, _NormBase):
        module.track_running_stats = module.running_mean is not None
    if not is_frozen(module):
        return module
    mean = module.get_buffer("running_mean")
    return nn.BatchNorm2d(len(mean), eps=getattr(module, "eps", 1e-5), device=mean.device, dtype=mean.dtype)


def initialise(branch: nn.Module, rule: Callable[[nn.Module], None] | None) -> tuple[str, ...]:
    """Draw every layer by its own ``reset_parameters``, then apply ``rule`` (``None``: the paper's, to convolutions).

    Returns the names of the parameters that no layer can draw: they keep the trunk's values.
    """
    drawn: set[int] = set()
    for module in branch.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            before = [(p, p._version, p.detach().clone()) for p in module.parameters()]
            reset()
            drawn |= {id(p) for p, version, old in before if p._version > version or _differ(p, old)}
    kept = tuple(name for name, parameter in branch.named_parameters() if id(parameter) not in drawn)
    if rule is None:
        init_convolutions(branch)
    else:
        branch.apply(rule)
    return kept


def _differ(tensor: Tensor, old: Tensor) -> bool:
    return not tensor.is_meta and not torch.equal(tensor, old)


def _resize(owner: nn.Module, name: str, *shape: int) -> None:
    old = getattr(owner, name, None)
    if old is not None:
        new = old.new_zeros(shape)
        setattr(owner, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _fit_conv(conv: nn.Conv2d, channels: int, factor: int) -> None:
    per_group, multiplier = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    if per_group == 1 and conv.groups > 1:
        groups, out = channels, channels * multiplier
    else:
        groups, out = max(channels // per_group, 1) if conv.groups > 1 else 1, conv.out_channels * factor
    if channels % groups or out % groups:
        raise CannotFitError(f"{channels} channels do not divide into groups of {per_group}")
    conv.in_channels, conv.out_channels, conv.groups = channels, out, groups
    _resize(conv, "weight", out, channels // groups, *conv.kernel_size)
    _resize(conv, "bias", out)


def _fit(layer: nn.Module, shape: tuple[int, ...], factor: int) -> None:
    """Make ``layer`` take an input of that shape and give ``factor`` times as many channels as before."""
    if not shape and isinstance(layer, (nn.Conv2d, nn.Linear, _NormBase, nn.GroupNorm, nn.LayerNorm)):
        raise CannotFitError(f"{type(layer).__name__} does not take one tensor")
    if isinstance(layer, nn.Conv2d):
        _fit_conv(layer, shape[1], factor)
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = shape[-1], layer.out_features * factor
        _resize(layer, "weight", layer.out_features, layer.in_features)
        _resize(layer, "bias", layer.out_features)
    elif isinstance(layer, (_NormBase, nn.GroupNorm)):
        channels = "num_channels" if isinstance(layer, nn.GroupNorm) else "num_features"
        setattr(layer, channels, shape[1])
        for name in ("weight", "bias", "running_mean", "running_var"):
            if hasattr(layer, name):
                _resize(layer, name, shape[1])
    elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) and len(layer.normalized_shape) == 1:
        layer.normalized_shape = (_normed(layer, shape, factor),)
        _resize(layer, "weight", *layer.normalized_shape)
        _resize(layer, "bias", *layer.normalized_shape)
    elif isinstance(layer, Replay) and all(p.numel() in (shape[1], shape[-1]) for p in layer.parameters()):
        pass  # its input has the same width as before
    else:
        _fit_scales(layer, factor)


def _normed(norm: nn.LayerNorm | nn.RMSNorm, shape: tuple[int, ...], factor: int) -> int:
    """The channels of a norm's input: the last dimension, or C of [B, C, H, W] for norms like LayerNorm2d."""
    (old,) = norm.normalized_shape
    first = "2d" in type(norm).__name__ or shape[-1] not in (old, factor * old)
    return shape[1] if first and len(shape) == 4 else shape[-1]


def _fit_scales(layer: nn.Module, factor: int) -> None:
    """Repeat the parameters of an unknown layer that have one value per channel, such as a layer scale."""
    for name, parameter in list(layer._parameters.items()):
        if parameter is None or factor == 1 or parameter.numel() == 1:
            continue
        dims = [dim for dim, size in enumerate(parameter.shape) if size > 1]
        if len(dims) > 1:
            raise CannotFitError(f"{type(layer).__name__} has a parameter {name} {tuple(parameter.shape)}")
        setattr(layer, name, nn.Parameter(torch.cat([parameter.detach()] * factor, dims[0])))


def refit(network: nn.Module, fork: tuple[int, ...], factor: int) -> tuple[int, ...]:
    """Make the layers of ``network`` ``factor`` times as wide, for a feature map of shape ``fork``; in place.

    Each layer is changed to take the output of the one before it. All changes are first tried on a copy without data.
    Returns the shape of the output, [B, C, H, W]. If the copy does not run, raises :class:`CannotFitError` and nothing
    has changed.
    """
    seen: list[tuple[str, tuple[int, ...]]] = []
    trial = on_meta(network).eval()  # in training some norms need data

    def hook(name: str) -> Callable:
        def fit(layer: nn.Module, args: tuple, kwargs: dict) -> None:
            # a dense layer takes a list of earlier outputs, and some layers take nothing
            tensor = next((arg for arg in (*args, *kwargs.values()) if isinstance(arg, (Tensor, list))), None)
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else ()
            if name not in dict(seen):
                _fit(layer, shape, factor)
                seen.append((name, shape))

        return fit

    for name, layer in trial.named_modules():
        if layer._parameters or isinstance(layer, _NormBase):
            layer.register_forward_pre_hook(hook(name), with_kwargs=True)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            dtype = next((parameter.dtype for parameter in network.parameters()), None)
            out = trial(torch.zeros(fork, device="meta", dtype=dtype))
    except Exception as error:  # any error of the network's own code with other channels
        raise CannotFitError(str(error)) from error
    for name, shape in seen:
        _fit(network.get_submodule(name), shape, factor)
    return tuple(out.shape)
