"""The ways that torch offers to share gradients where a step computes some branches only.

Each has the interface of :class:`fastdhm.engine.shared_gradients.SharedGradients` and :meth:`Way.finish`, to be called
before the optimizer's step. The gradients of branches that a step did not compute end as None, as in one process.

FSDP2's ``replicate`` is not among them: it refuses weights that lie channels last.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate import replicate
from torch.nn.parallel import DistributedDataParallel

from fastdhm.engine.distributed import count
from fastdhm.engine.shared_gradients import Call, SharedGradients


class Way:
    """No sharing at all: what a step costs by itself. It is no answer, but what the others are held against."""

    def begin(self, modules: Mapping[str, nn.Module]) -> None:
        """Take note of what trains."""
        self.main, self.modules = next(iter(modules)), modules
        self.parameters = [p for module in modules.values() for p in module.parameters()]

    def around(self, compute: Callable, active: Iterable[str] | None, *, last: bool = True) -> Callable:
        """``compute``, after whose backward pass, and :meth:`finish`, the gradients are shared."""
        return compute

    def finish(self) -> None:
        """After the backward pass."""

    def of(self, active: Iterable[str] | None) -> list[nn.Parameter]:
        """The parameters that a step uses."""
        names = self.modules if active is None else (self.main, *active)
        return [p for name in names for p in self.modules[name].parameters()]


class After(Way):
    """All gradients of a step in one message after the backward pass: nothing overlaps."""

    def finish(self) -> None:
        grads = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for grad, mean in zip(grads, (flat / count()).split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))


class Hooks(Way):
    """A message for each parameter as soon as its gradient is there: no buckets."""

    def begin(self, modules: Mapping[str, nn.Module]) -> None:
        super().begin(modules)
        self.works: list[Any] = []
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._send)

    def _send(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad /= count()
        self.works.append(dist.all_reduce(parameter.grad, async_op=True))

    def finish(self) -> None:
        for work in self.works:
            work.wait()
        self.works.clear()


def _wrapped(parameters: Iterable[nn.Parameter], **options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(Call(parameters), broadcast_buffers=False, **options)


class FindUnused(Way):
    """One DistributedDataParallel that searches the graph of each step for what it did not use, and still sends all."""

    def begin(self, modules: Mapping[str, nn.Module]) -> None:
        super().begin(modules)
        self.whole = _wrapped(self.parameters, find_unused_parameters=True, gradient_as_bucket_view=True)

    def around(self, compute: Callable, active: Iterable[str] | None, *, last: bool = True) -> Callable:
        def call(*args: Any) -> Any:
            return self.whole(compute, *args)

        return call


class PerSet(Way):
    """A DistributedDataParallel for each set of branches. Gradients cannot lie in its buckets, as they have several."""

    def begin(self, modules: Mapping[str, nn.Module]) -> None:
        super().begin(modules)
        self.wholes: dict[tuple[str, ...] | None, DistributedDataParallel] = {}

    def around(self, compute: Callable, active: Iterable[str] | None, *, last: bool = True) -> Callable:
        key = None if active is None else tuple(active)
        if key not in self.wholes:
            self.wholes[key] = _wrapped(self.of(active))

        def call(*args: Any) -> Any:
            return self.wholes[key](compute, *args)

        return call


class Zeros(Way):
    """One DistributedDataParallel; what a step does not use adds zero to its loss, and is sent."""

    def begin(self, modules: Mapping[str, nn.Module]) -> None:
        super().begin(modules)
        self.whole = _wrapped(self.parameters, gradient_as_bucket_view=True)
        self.unused: list[nn.Parameter] = []

    def around(self, compute: Callable, active: Iterable[str] | None, *, last: bool = True) -> Callable:
        used = set(self.of(active))
        self.unused = [p for p in self.parameters if p not in used]

        def with_zeros(*args: Any) -> Any:
            loss, *rest = compute(*args)
            return (loss + sum((0 * p.sum() for p in self.unused), torch.zeros_like(loss)), *rest)

        def call(*args: Any) -> Any:
            return self.whole(with_zeros, *args)

        return call

    def finish(self) -> None:
        for parameter in self.unused:
            parameter.grad = None


class Replicate(Way):
    """torch's composable ``replicate`` on the trunk and on each branch."""

    def begin(self, modules: Mapping[str, nn.Module]) -> None:
        super().begin(modules)
        self.parts = {name: replicate(Call(module.parameters())) for name, module in modules.items()}

    def around(self, compute: Callable, active: Iterable[str] | None, *, last: bool = True) -> Callable:
        call = compute
        for name in self.parts if active is None else (self.main, *active):
            call = _inside(self.parts[name], call)
        return call


def _inside(part: nn.Module, call: Callable) -> Callable:
    def inside(*args: Any) -> Any:
        return part(call, *args)

    return inside


class Ours(SharedGradients):
    """The engine's: a DistributedDataParallel on the trunk and on each branch, entered if the step uses it."""

    def finish(self) -> None:
        """Nothing is left to do after the backward pass."""


WAYS: dict[str, Callable[[], Any]] = {
    "fastdhm": Ours, "after": After, "hooks": Hooks, "find_unused": FindUnused, "per_set": PerSet, "zeros": Zeros,
    "replicate": Replicate, "alone": Way,
}  # fmt: skip
