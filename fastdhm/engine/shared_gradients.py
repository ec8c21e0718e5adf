"""What the processes of a run average: gradients in each step, and buffers where they are read."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastdhm.engine import distributed


class Call(nn.Module):
    """Some parameters, and a call inside of which they are used."""

    def __init__(self, parameters: Iterable[nn.Parameter]):
        super().__init__()
        self.parameter = nn.ParameterList(parameters)

    def forward(self, call: Callable, *args: Any) -> Any:
        return call(*args)


class SharedGradients:
    """``around(compute, active)`` is ``compute``, after whose backward pass every process has the mean gradients.

    The trunk and each branch have a DistributedDataParallel of their own, around one call of ``compute``. Those of the
    branches that a step does not compute are not entered: nothing is searched, sent or zeroed for them, and their
    gradients stay None, as in one process. Gradients travel while the backward pass computes those before them.
    """

    def __init__(self, *, compress: bool = False):
        self.compress = compress
        self.parts: dict[str, DistributedDataParallel] = {}
        self._training: set[nn.Parameter] = set()

    def begin(self, modules: Mapping[str, nn.Module]) -> None:
        """From now on share the gradients of what trains in ``modules``, the trunk first; quick if nothing is new."""
        training = {p for module in modules.values() for p in module.parameters() if p.requires_grad}
        if distributed.count() == 1 or training == self._training:
            return
        self.parts, self._training, self._main = {}, training, next(iter(modules))
        for name, module in modules.items():
            part = [p for p in module.parameters() if p.requires_grad]
            if part:
                self.parts[name] = DistributedDataParallel(Call(part), gradient_as_bucket_view=True)
                if self.compress:
                    distributed.send_bfloat16(self.parts[name])

    def around(self, compute: Callable, active: Iterable[str] | None, *, last: bool = True) -> Callable:
        """``last``: the gradients of this call, and of those since the last one that was, are sent."""
        for name, part in self.parts.items():
            if active is None or name in (self._main, *active):
                part.require_backward_grad_sync = last
                compute = partial(part, compute)
        return compute


@torch.no_grad()
def average_buffers(*models: nn.Module) -> None:
    """Give all processes the mean of what each has for a buffer, such as a batch norm's running statistics."""
    buffers = [buffer for model in models for buffer in model.buffers() if buffer.is_floating_point()]
    if distributed.count() > 1 and buffers:
        flat = torch.cat([buffer.double().flatten() for buffer in buffers])
        distributed.sum_(flat)
        for buffer, mean in zip(buffers, (flat / distributed.count()).split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))
