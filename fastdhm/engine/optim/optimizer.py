"""torch's own optimizers, where a step reads its learning rate, and the freezing of pre-trained weights."""

import functools
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd as functional_sgd

from fastdhm.engine.optim.groups import SHARE


def make_sgd(groups: list[dict[str, Any]], *, lr: float, momentum: float, nesterov: bool) -> torch.optim.Optimizer:
    """Fused SGD.

    A branch that sits a step out has no gradient, and SGD leaves it alone: no decay, and its momentum stays for later.
    """
    sgd = _sgd()(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
    if momentum > 0:
        # The fused step fails if only some of its tensors have a buffer, as when a branch takes part the first time.
        # So all buffers start as zeros, which gives the same first step.
        params = [p for group in groups for p in group["params"]]
        sgd.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in params})
    return sgd


def make_amsgrad(groups: list[dict[str, Any]], **arguments: Any) -> torch.optim.Optimizer:
    """Fused Adam with AMSGrad's second moment (Reddi et al., ICLR 2018).

    The decay is part of the gradient, as in the paper's time, not AdamW's. A tensor's moments and its count of steps
    begin with its first gradient, so that a layer which was frozen till then starts with the right bias correction.
    """
    return _adam(torch.optim.Adam)(groups, amsgrad=True, fused=True, **arguments)


def make_adamw(groups: list[dict[str, Any]], **arguments: Any) -> torch.optim.Optimizer:
    """Fused AdamW (Loshchilov and Hutter, ICLR 2019): the decay is beside the gradient. Moments begin as AMSGrad's."""
    return _adam(torch.optim.AdamW)(groups, fused=True, **arguments)


def place_learning_rate(optimizer: torch.optim.Optimizer, device: torch.device, captured: bool) -> None:
    """Have the learning rate where a step reads it: a number, or a tensor on the device where a CUDA graph does."""
    for group in optimizer.param_groups:
        lr = float(group["lr"])  # a checkpoint may hold a tensor or a number
        group["lr"] = torch.tensor(lr, device=device) if captured else lr
        if "capturable" in group:  # Adam's count of steps
            group["capturable"] = captured


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step, in each group its share of it.

    A tensor keeps its place and the host does not wait.
    """
    for group in optimizer.param_groups:
        rate = lr * group.get(SHARE, 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


@functools.cache
def _sgd() -> type[torch.optim.SGD]:
    kind: Any = without_compiler(torch.optim.SGD)

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
def _adam(torchs: Any) -> Any:
    kind: Any = without_compiler(torchs)

    class Adam(kind):
        """torch's, whose step is handed views."""

        def _init_group(self, group, params, grads, *state):
            has_complex = super()._init_group(group, params, grads, *state)
            moments = [part for part in state[:-1] if isinstance(part, list)]  # torch 2.6's AdamW hands a flag beside
            lists = (params, grads, *moments)  # and not the counts of steps, which are the last
            for tensors, views in zip(lists, _as_they_lie(*lists), strict=True):
                tensors[:] = views
            return has_complex

    return Adam


def _as_they_lie(params: list[Tensor], grads: list[Tensor], *state: list[Tensor]) -> tuple[list[Tensor], ...]:
    """Contiguous views of the same memory, each in its parameter's memory order; a gradient in another is copied.

    On a CPU torch's fused steps ignore strides and go through memory in its order. If a gradient has another order than
    its parameter, the wrong elements are combined. And they would make useless copies of channels-last tensors.
    """
    orders = [None if p.is_contiguous() else sorted(range(p.ndim), key=p.stride, reverse=True) for p in params]

    def views(tensors: list[Tensor]) -> list[Tensor]:
        pairs = zip(tensors, orders, strict=bool(tensors))  # a list may be empty: without momentum, without AMSGrad
        return [tensor if order is None else tensor.permute(order) for tensor, order in pairs]

    seen = [views(tensors) for tensors in (params, *state)]
    assert all(tensor.is_contiguous() for tensors in seen for tensor in tensors), "lies otherwise than its parameter"
    return seen[0], [grad.contiguous() for grad in views(grads)], *seen[1:]


@functools.cache
def without_compiler(kind: Any) -> type[torch.optim.Optimizer]:
    """The same optimizer, whose methods do not import torch's compiler.

    To keep them out of compiled functions, torch wraps them, and the wrapper imports the compiler at the first call.
    That takes as long as all of torch's other imports together. Here no compiled function calls an optimizer.
    """
    wrapped = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in wrapped}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"])})


def freeze(model: nn.Module, names: Iterable[str]) -> None:
    """Put ``model`` in training mode and freeze the parameters ``names``.

    Frozen parameters get no gradient, so no optimizer step changes them. A module that has only frozen parameters is in
    evaluation mode: the statistics of its batch norms do not move, and its dropout drops nothing.
    """
    names = frozenset(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    model.train()
    for module in model.modules():
        mine = list(module.parameters())
        if mine and not any(parameter.requires_grad for parameter in mine):
            module.eval()
