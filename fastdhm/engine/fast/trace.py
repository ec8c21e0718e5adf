"""What torch.fx lacks to trace a network with branches: hooks, writing in place, and which parts are computed again."""

import operator
from collections.abc import Callable

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastdhm.models.base.alone import leave
from fastdhm.models.base.branched import Capture


def _in_place(name: str) -> Callable:
    """The operator ``name`` as a function of ours: torch.fx would write ``x += y``, by which a number x is another."""
    function = getattr(operator, name)

    def write(x, y):
        return function(x, y)

    write.__name__ = name
    return write


IN_PLACE = {f"__{name}__": _in_place(name) for name in ("iadd", "isub", "imul", "itruediv", "ipow", "iand", "ior")}


class _Proxy(fx.Proxy):
    """Writes where the network does: torch.fx takes ``x += y`` for ``x = x + y``, which leaves others' x alone."""


for _name, _function in IN_PLACE.items():
    setattr(_Proxy, _name, lambda x, y, f=_function: x.tracer.create_proxy("call_function", f, (x, y), {}))


class Tracer(fx.Tracer):
    """A tracer for networks with branches.

    - It also traces the hooks that give the branches their features; torch.fx leaves out those of leaf modules.
    - It does not enter a module that has other hooks, so that they see tensors.
    - A node of modules that are computed again in the backward pass has them as its ``group``.
    - A forward may end in an exception, as the trunk of a single branch does, and the caller may catch it.
    """

    group: nn.Module | None = None

    def create_node(self, *args, **kwargs):
        node = super().create_node(*args, **kwargs)
        node.meta["group"] = self.group
        return node

    def proxy(self, node):
        return _Proxy(node, self)

    def is_leaf_module(self, module, name):
        return has_hooks(module) or isinstance(module, _BatchNorm) or super().is_leaf_module(module, name)

    def call_module(self, module, forward, args, kwargs):
        name = self.path_of_module(module)
        if has_hooks(module) and any(_is_ours(hook) for part in module.modules() for hook in hooks(part)):
            raise ValueError(f"{name.removeprefix('model.')} has hooks, and a branch leaves from there")
        entered, group = self.module_stack.copy(), self.group
        try:
            output = super().call_module(module, forward, args, kwargs)
            if self.is_leaf_module(module, name):
                for hook in filter(_is_ours, hooks(module)):
                    hook(module, args, output)
        except Exception:
            self.module_stack, self.group = entered, group
            raise
        return output


def _is_ours(hook: Callable) -> bool:
    return isinstance(hook, Capture) or hook is leave


def hooks(module: nn.Module) -> list[Callable]:
    """Of its forward pass."""
    return list(module._forward_hooks.values())


def has_hooks(module: nn.Module) -> bool:
    """Whether a call does more than ``forward`` and what the branches ask for, such as to make the weight anew."""
    if module._forward_pre_hooks or module._backward_pre_hooks or module._backward_hooks:
        return True
    return not all(map(_is_ours, hooks(module)))


def is_plain(module: nn.Module) -> bool:
    """Whether a call does what the class does."""
    return not has_hooks(module) and "forward" not in vars(module)
