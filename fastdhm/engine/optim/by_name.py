"""Optimizers by their names: torch's, timm's and schedulefree's, each with the arguments that it has."""

import ast
import inspect
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from fastdhm.engine.optim.groups import make_groups
from fastdhm.engine.optim.muon import has_torchs_muon, make_muon
from fastdhm.engine.optim.optimizer import make_adamw, make_amsgrad, make_sgd, without_compiler
from fastdhm.errors import UserError, did_you_mean, first_line, unknown

SCHEDULE_FREE = {"sgd": "SGDScheduleFree", "adamw": "AdamWScheduleFree", "radam": "RAdamScheduleFree"}
NAMES = ("sgd", "amsgrad", "adamw", "lion", "lamb", "muon", *(f"schedulefree:{name}" for name in SCHEDULE_FREE))
OF_TIMM = ("lion", "lamb")  # timm's, under their own names
# what has a flag of its own, by optimizer
FLAGS = {
    "sgd": ("momentum", "nesterov"), "amsgrad": ("betas",), "adamw": ("betas",), "muon": ("betas",),
}  # fmt: skip
ALWAYS_FLAGS = ("lr", "weight_decay")
# how a step is computed, or what a run of ours has no place for
NOT_ASKED = (
    "self", "params", "foreach", "fused", "capturable", "differentiable", "maximize", "verbose", "adamw_lr",
    "dampening", "amsgrad", "warmup_steps",
)  # fmt: skip


def is_schedule_free(name: str) -> bool:
    """Whether its network is an average of weights that no schedule leads to an end."""
    return name.startswith("schedulefree:")


def make_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    weight_decay: float,
    decay_norm_bias: bool = True,
    layer_decay: float = 1.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    arguments: str = "",
) -> torch.optim.Optimizer:
    """The optimizer ``name`` over all parameters of ``model``, in training mode where it has modes.

    ``momentum`` and ``nesterov`` are sgd's, ``betas`` those of amsgrad, adamw and of the AdamW beside muon;
    ``arguments``, such as ``eps=1e-6,betas=0.9,0.95``, are what the optimizer has beside those.

    Raises:
        ValueError: an unknown name, a library that is not there, an argument that it does not have or does not take.
    """
    kind, preset = find(name)
    given = {"momentum": momentum, "nesterov": nesterov, "betas": betas}
    given = {flag: given[flag] for flag in FLAGS.get(name, ())} | {"lr": lr}
    beside = read_arguments(name, arguments)
    groups = make_groups(model, weight_decay, decay_norm_bias, layer_decay)
    make: Callable[..., torch.optim.Optimizer]
    if name == "muon":
        make = partial(make_muon, model, groups, kind)
    else:
        own = {"sgd": make_sgd, "amsgrad": make_amsgrad, "adamw": make_adamw}
        make = partial(own.get(name, without_compiler(kind)), groups)
    try:
        optimizer = make(**preset | given | beside)
    except (ValueError, TypeError, AssertionError) as error:
        raise refused(name, arguments, error) from error
    if is_schedule_free(name):
        optimizer.train()  # type: ignore[attr-defined] # the library's own mode
    return optimizer


def refused(name: str, arguments: str, error: Exception) -> UserError:
    """The error for what the optimizer ``name`` does not take."""
    given = f"optimizer_args is {arguments}: {name} does not take it" if arguments else f"optimizer is {name}"
    return UserError(f"{given}: {first_line(error)}")


def find(name: str) -> tuple[Any, dict[str, Any]]:
    """The class of the optimizer ``name`` and the arguments that its library binds to the name."""
    torchs = {"sgd": torch.optim.SGD, "amsgrad": torch.optim.Adam, "adamw": torch.optim.AdamW}
    library, _, inner = name.rpartition(":")
    if name in torchs:
        return torchs[name], {}
    if name == "muon" and has_torchs_muon():
        return torch.optim.Muon, {}
    if name == "muon":  # as torch's is by default
        return _timm(name)[0], {"nesterov": True, "ns_coefficients": "original"}
    if name in OF_TIMM or (library == "timm" and inner):
        return _timm(name)
    if library == "schedulefree" and inner in SCHEDULE_FREE:
        return getattr(_schedulefree(name), SCHEDULE_FREE[inner]), {}
    raise unknown("optimizer", name, (*NAMES, "timm:NAME"))


def _timm(name: str) -> tuple[Any, dict[str, Any]]:
    try:
        import timm.optim
    except ImportError as error:
        raise UserError(f"optimizer is {name}: timm is not installed: pip install timm") from error
    inner = name.removeprefix("timm:")
    known = [other for other in timm.optim.list_optimizers() if timm.optim.get_optimizer_info(other).second_order < 1]
    if inner not in known:
        second = inner in timm.optim.list_optimizers()
        why = ": it needs second derivatives, which the fused loss does not have" if second else ""
        raise UserError(f"timm has no optimizer {inner!r} for a run{why or did_you_mean(inner, known)}")
    info = timm.optim.get_optimizer_info(inner)
    try:
        kind = timm.optim.get_optimizer_class(inner, bind_defaults=False)
    except (ImportError, AssertionError) as error:
        raise UserError(f"optimizer is {name}: {first_line(error)}") from error
    momentum = {"momentum": 0.9} if info.has_momentum and inner != "muon" else {}  # as timm's own factory
    return kind, momentum | (info.defaults or {})


def _schedulefree(name: str) -> Any:
    try:
        import schedulefree
    except ImportError as error:
        raise UserError(f"optimizer is {name}: schedulefree is not installed: pip install schedulefree") from error
    return schedulefree


def fitted(recipe: dict[str, Any], name: str, lr: float | None = None) -> dict[str, Any]:
    """What the values of a ``recipe`` become with the optimizer ``name``, if that is not the recipe's own.

    Learning rate, if no ``lr`` is given, and weight decay are those of its library. The warm-up begins at the same
    share of the rate.

    Raises:
        ValueError: no ``lr`` is given, and the library has none.
    """
    if name == recipe.get("optimizer", "sgd"):
        return {}
    parameters = inspect.signature(find(name)[0]).parameters
    own = {flag: parameters[flag].default for flag in ALWAYS_FLAGS if flag in parameters}
    values: dict[str, Any] = {flag: float(value) for flag, value in own.items() if isinstance(value, int | float)}
    values |= {} if lr is None else {"lr": lr}
    if not values.get("lr"):
        raise UserError(f"optimizer is {name}, whose library has no learning rate for it: set one by --lr")
    warmup_lr = recipe.get("warmup_lr", 0.0) * values["lr"] / recipe["lr"]
    values |= {"optimizer": name, "nesterov": False, "warmup_lr": warmup_lr}
    return values | ({"schedule": "constant"} if is_schedule_free(name) else {})


def read_arguments(name: str, text: str) -> dict[str, Any]:
    """``eps=1e-6,betas=0.9,0.95`` as a dictionary of arguments that the optimizer ``name`` has."""
    taken = (*ALWAYS_FLAGS, *FLAGS.get(name, ()))
    known = [argument for argument in inspect.signature(find(name)[0]).parameters if argument not in NOT_ASKED + taken]
    found = {}
    for part in re.split(r",(?=\s*[A-Za-z_]\w*\s*=)", text) if text else []:
        argument, value = (word.strip() for word in part.split("=", 1))
        if argument in taken:
            raise UserError(f"optimizer_args names {argument}: set it by --{argument.replace('_', '-')}")
        if argument not in known:
            has = f"{name} has {', '.join(known) or 'none beside its flags'}"
            raise UserError(f"optimizer_args names {argument}{did_you_mean(argument, known)} ({has})")
        found[argument] = _value(value)
        numbers = found[argument] if isinstance(found[argument], tuple | list) else (found[argument],)
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise UserError(f"optimizer_args has {argument}={value}: must be finite")
    return found


def _value(text: str) -> Any:
    """A Python value: a number, several, true, false or null; else text."""
    word = text.lower()
    if word in ("true", "false", "null", "none"):
        return {"true": True, "false": False}.get(word)
    if word.lstrip("+-") in ("nan", "inf", "infinity"):
        return float(word)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
