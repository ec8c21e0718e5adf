"""What moves the weights, and which of them stand still while new layers catch up with pre-trained ones."""

import functools
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd as functional_sgd


def make_sgd(
    model: nn.Module, lr: float, momentum: float, nesterov: bool, weight_decay: float, decay_norm_bias: bool
) -> torch.optim.SGD:
    """Fused SGD; without ``decay_norm_bias`` only tensors of two dimensions and more are decayed.

    A branch that sits a step out has no gradient, and SGD leaves it alone: no decay, and its momentum stays for later.
    """
    groups = _groups(model, weight_decay, decay_norm_bias)
    sgd = _sgd()(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
    if momentum > 0:
        # The fused step fails where some of its tensors have a buffer and others have not, such as those of a branch
        # that was out until now. From zeros the first step is what it is from nothing.
        sgd.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in model.parameters()})
    return sgd


def make_amsgrad(
    model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float, decay_norm_bias: bool
) -> torch.optim.Adam:
    """Fused Adam with AMSGrad's second moment (Reddi et al., ICLR 2018), decay and spared tensors as in SGD.

    The decay is part of the gradient, as in the paper's time, not AdamW's. A tensor's moments and its count of steps
    begin with its first gradient, so that a layer which was frozen till then starts with the right bias correction.
    """
    groups = _groups(model, weight_decay, decay_norm_bias)
    return _adam()(groups, lr=lr, betas=betas, amsgrad=True, fused=True)


def place_learning_rate(optimizer: torch.optim.Optimizer, device: torch.device, captured: bool) -> None:
    """Have the learning rate where a step reads it: a number, or a tensor on the device where a CUDA graph does."""
    for group in optimizer.param_groups:
        lr = float(group["lr"])  # a checkpoint may be of a run that had it elsewhere
        group["lr"] = torch.tensor(lr, device=device) if captured else lr
        if "capturable" in group:  # Adam's count of steps
            group["capturable"] = captured


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step; a tensor keeps its place and the host does not wait."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


@functools.cache
def _sgd() -> type[torch.optim.SGD]:
    kind: Any = _without_compiler(torch.optim.SGD)

    class SGD(kind):
        """torch's, whose step is handed views; with momentum it has all its buffers from the start."""

        @torch.no_grad()
        def step(self) -> None:
            for group in self.param_groups:
                moved = [p for p in group["params"] if p.grad is not None]
                buffers = [self.state[p]["momentum_buffer"] for p in moved] if group["momentum"] else []
                params, grads, momenta = _as_they_lie(moved, [p.grad for p in moved], buffers)
                functional = ("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize", "fused")
                given = {name: group[name] for name in functional}
                given |= {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}
                functional_sgd(params, grads, [*momenta], **given)

    return SGD


@functools.cache
def _adam() -> type[torch.optim.Adam]:
    kind: Any = _without_compiler(torch.optim.Adam)

    class Adam(kind):
        """torch's, whose step is handed views."""

        def _init_group(self, group, params, grads, *state):
            has_complex = super()._init_group(group, params, grads, *state)
            lists = (params, grads, *state[:-1])  # the last are the counts of steps
            for tensors, views in zip(lists, _as_they_lie(*lists), strict=True):
                tensors[:] = views
            return has_complex

    return Adam


def _as_they_lie(params: list[Tensor], grads: list[Tensor], *state: list[Tensor]) -> tuple[list[Tensor], ...]:
    """The same memory as views whose elements are adjacent, each in the order in which its parameter has them.

    On a CPU torch's fused steps go through memory as it lies, whatever the strides: where a gradient lies otherwise
    than its parameter, numbers meet that do not belong together. And of a channels-last one they make a copy of no use.
    """
    orders = [None if p.is_contiguous() else sorted(range(p.ndim), key=p.stride, reverse=True) for p in params]

    def views(tensors: list[Tensor]) -> list[Tensor]:
        pairs = zip(tensors, orders, strict=bool(tensors))  # a list may be empty: without momentum, without AMSGrad
        return [tensor if order is None else tensor.permute(order) for tensor, order in pairs]

    seen = [views(tensors) for tensors in (params, *state)]
    assert all(tensor.is_contiguous() for tensors in seen for tensor in tensors), "lies otherwise than its parameter"
    return seen[0], [grad.contiguous() for grad in views(grads)], *seen[1:]


@functools.cache
def _without_compiler(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The same optimizer, whose methods do not import torch's compiler.

    torch wraps them in what imports it when they are first called, to keep them out of a compiled function. That takes
    as long as all of torch's other imports together, and optimizers are not called in compiled functions here.
    """
    wrapped = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in wrapped}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"])})


def _groups(model: nn.Module, weight_decay: float, decay_norm_bias: bool) -> list[dict]:
    decayed = [p for p in model.parameters() if decay_norm_bias or p.ndim > 1]
    spared = [p for p in model.parameters() if not decay_norm_bias and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def freeze(model: nn.Module, names: Iterable[str]) -> None:
    """Put ``model`` in training mode, but for what the parameters ``names`` belong to, which stands still.

    These get no gradient, so that no optimizer step touches them; and every module that has no other parameters is in
    evaluation mode: the statistics of its batch norms do not move, its dropout drops nothing.
    """
    names = frozenset(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    model.train()
    for module in model.modules():
        mine = list(module.parameters())
        if mine and not any(parameter.requires_grad for parameter in mine):
            module.eval()
