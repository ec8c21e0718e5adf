"""Muon for the weights of hidden layers, AdamW for all else, as one optimizer.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, and its code, in which a
convolution's weight is a matrix [output channels, all that one of them sees], and norms, biases, the first layer and
classifiers are AdamW's. The rate is scaled as in Liu et al., "Muon is scalable for LLM training", 2025, so that both
take AdamW's learning rate and decay.
"""

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastdhm.engine.optim.optimizer import make_adamw, without_compiler

SCALED = {"adjust_lr_fn": "match_rms_adamw"}
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def has_torchs_muon() -> bool:
    """Whether torch has Muon, which it has from 2.9 on; timm's is taken otherwise."""
    return hasattr(torch.optim, "Muon")


def make_muon(
    model: nn.Module, groups: list[dict[str, Any]], kind: type[torch.optim.Optimizer], **arguments: Any
) -> torch.optim.Optimizer:
    """Muon over the matrices in ``groups`` and AdamW over the rest; ``kind`` is torch's Muon, or timm's.

    ``arguments`` are Muon's, ``betas`` are AdamW's.
    """
    hidden = hidden_weights(model)
    parts = [[p for p in group["params"] if (p in hidden) == of_muon] for of_muon in (True, False) for group in groups]
    halves = [group | {"params": part} for group, part in zip([*groups, *groups], parts, strict=True) if part]
    matrices = [group for group in halves if group["params"][0] in hidden]
    others = [group for group in halves if group["params"][0] not in hidden]
    lr, betas = arguments.pop("lr"), arguments.pop("betas")
    muons = [_over(kind, matrices, lr=lr, **SCALED | arguments)] if matrices else []
    return _together()([*muons, make_adamw(others, lr=lr, betas=betas)])


def hidden_weights(model: nn.Module) -> set[Tensor]:
    """The weights of linear layers and convolutions without the trunk's first and the last of trunk and branches.

    Those that see one channel (depthwise) are left out: their rows have nothing to be orthogonal to.
    """
    trunk, branches = getattr(model, "trunk", model), getattr(model, "branches", {})
    parts = [
        [module.weight for module in part.modules() if isinstance(module, LAYERS)]
        for part in (trunk, *branches.values())
    ]
    outer = {*parts[0][:1], *(weight for part in parts for weight in part[-1:])}
    return {weight for part in parts for weight in part if weight.shape[1] > 1} - outer


def _over(kind: Any, groups: list[dict[str, Any]], **arguments: Any) -> torch.optim.Optimizer:
    """Muon over ``groups``; torch's refuses more than two dimensions at the start, and never again."""
    if not has_torchs_muon():
        return without_compiler(kind)(groups, **arguments)
    muon = _torchs()([nn.Parameter(torch.empty(0, 0))], **arguments)
    muon.param_groups.clear()
    for group in groups:
        muon.add_param_group(group)
    return muon


@functools.cache
def _torchs() -> Any:
    kind: Any = without_compiler(torch.optim.Muon)

    class Muon(kind):
        """torch's, whose step is handed weights of convolutions as matrices."""

        def _init_group(self, group, params, grads, buffers):
            has_complex = super()._init_group(group, params, grads, buffers)
            orders = [_order(p) for p in params]
            for tensors in (params, grads, buffers):
                tensors[:] = [t.permute(order).flatten(1) for t, order in zip(tensors, orders, strict=True)]
            own = [p for p in group["params"] if p.grad is not None]
            assert all(m.data_ptr() == p.data_ptr() for m, p in zip(params, own, strict=True)), "a copy would be moved"
            return has_complex

    return Muon


def _order(weight: Tensor) -> list[int]:
    """The dimensions of a weight, output channels first and the others as they lie in memory.

    In another order the columns of the matrix, and of its orthogonal factor, are only numbered otherwise.
    """
    return [0, *sorted(range(1, weight.ndim), key=weight.stride, reverse=True)]


@functools.cache
def _together() -> Any:
    kind: Any = without_compiler(torch.optim.Optimizer)

    class Together(kind):
        """Several optimizers, each with parameters of its own, as one."""

        def __init__(self, parts: Iterable[torch.optim.Optimizer]):
            self.parts = list(parts)
            super().__init__([p for part in self.parts for group in part.param_groups for p in group["params"]], {})
            self._gather()

        def _gather(self) -> None:
            self.param_groups = [group for part in self.parts for group in part.param_groups]
            self.state = {p: state for part in self.parts for p, state in part.state.items()}

        @torch.no_grad()
        def step(self) -> None:
            for part in self.parts:
                part.step()

        def state_dict(self) -> dict[str, Any]:
            return {"parts": [part.state_dict() for part in self.parts]}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            for part, saved in zip(self.parts, state_dict["parts"], strict=True):
                part.load_state_dict(saved)
            self._gather()

    return Together
