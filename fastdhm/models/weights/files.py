"""Weights in files as others save them: inside a checkpoint, under a prefix, in another number format.

What can be meant in one way only is taken, and said; anything else is refused.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastdhm.errors import UserError
from fastdhm.system.files import plain_name
from fastdhm.system.loading import load_without_code

NAMED = 3  # names that an error lists of each kind
DEPTH = 2  # how far down in a checkpoint tensors by name are looked for
# what torch.compile, FSDP and activation checkpointing put into names, and what torchvision's DenseNet files still have
RENAMED = (
    (re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."), ""),
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
)


@dataclass(frozen=True)
class Fit:
    """Tensors of a file that are a network's, under its own names, and how they come to be."""

    state: dict[str, Tensor]
    kept: frozenset[str]
    """Names of the network that the file has nothing for, and need not."""
    place: str
    """The entry of the file that holds them; "" is the file itself."""
    prefix: str
    left_out: tuple[str, ...] = ()
    """Names in the file beside them."""

    @property
    def told(self) -> str:
        """Where they lay, for people."""
        parts = [f"its {self.place!r}"] if self.place else []
        parts += [f"names that begin with {self.prefix!r}"] if self.prefix else []
        parts += [f"without {some(self.left_out)}"] if self.left_out else []
        return ", ".join(parts)


def read(path: Path, what: str = "weights file") -> dict[str, dict[str, Tensor]]:
    """Every set of tensors by name in a file, by the entry that holds it; nothing in the file is executed.

    Raises:
        ValueError: no such file, or one without tensors by name.
    """
    if not path.is_file():
        raise UserError(f"no {what.removesuffix(' file')} at {path}: there is no such file")
    if _is_safetensors(path):
        try:
            with plain_name(path) as name:
                return {"": load_file(name)}
        except (ValueError, OSError, SafetensorError) as error:
            raise UserError(f"{path} is no whole {what}, or holds code: it was not loaded") from error
    saved = load_without_code(path, what)
    sets = _sets(saved, DEPTH)
    if not sets:
        found = f" but {some(list(map(str, saved)))}" if isinstance(saved, dict) and saved else ""
        raise UserError(f"{path} holds no tensors by name{found}: save a network's state_dict() alone")
    return sets


def _is_safetensors(path: Path) -> bool:
    """By its suffix, or what is in it: both kinds are found under ``.bin`` and ``.pt``."""
    if path.suffix == ".safetensors":
        return True
    with suppress(OSError), open(path, "rb") as file:
        return file.read(9)[8:] == b"{"
    return False


def _sets(saved: object, depth: int) -> dict[str, dict[str, Tensor]]:
    if not isinstance(saved, Mapping):
        return {}
    named = {name: value for name, value in saved.items() if isinstance(name, str)}
    tensors = {_renamed(name): value for name, value in named.items() if isinstance(value, Tensor)}
    sets = {"": tensors} if tensors else {}
    for name, value in named.items() if depth else ():
        sets |= {f"{name}.{place}".rstrip("."): state for place, state in _sets(value, depth - 1).items()}
    return sets


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = pattern.sub(replacement, name)
    return name


def prefixes(state: Iterable[str], anchor: str) -> list[str]:
    """What stands before ``anchor``, a whole name, in names of ``state``; "" where it is there as it is."""
    ends = [name.removesuffix(anchor) for name in state if name.endswith(anchor)]
    return [prefix for prefix in ends if not prefix or prefix.endswith(".")]


def under(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors whose names begin with ``prefix``, without it, and the names of the others."""
    taken = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return taken, tuple(name for name in state if not name.startswith(prefix))


def the_one(fits: list[Fit], source: str) -> Fit:
    """The only way to take a file; ``ValueError`` where there are several."""
    if len(fits) > 1:
        ways = "; ".join(fit.told or "the file itself" for fit in fits)
        raise UserError(f"{source} holds {len(fits)} networks that fit ({ways}): save the one you mean alone")
    return fits[0]


def differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor], kept: Iterable[str]) -> str:
    """What makes ``state`` no state of a network of the tensors ``own``, less those ``kept``; "" if nothing does."""
    missing = [name for name in own if name not in state and name not in kept]
    extra = [name for name in state if name not in own]
    reshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and name not in kept and state[name].shape != own[name].shape
    ]
    kinds = {"missing": missing, "unknown": extra, "of another shape": reshaped}
    return "; ".join(f"{len(names)} {kind} ({some(names)})" for kind, names in kinds.items() if names)


def as_weights(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of ``state`` in the number formats of ``own``, and what was converted, for people.

    Raises:
        ValueError: whole or complex numbers where weights belong, NaN or infinity; names them.
    """
    taken, formats, wrong, broken = {}, set(), [], []
    for name, given in state.items():
        like = own[name]
        dense = given.to_dense() if given.layout != torch.strided else given
        kind = str(given.dtype).removeprefix("torch.") if dense is given else f"sparse {given.dtype}"
        if dense.is_quantized or dense.is_complex() or dense.is_floating_point() != like.is_floating_point():
            wrong.append(f"{name} {kind}")
            continue
        if dense.dtype != like.dtype or dense is not given:
            formats.add(kind)
        taken[name] = dense.to(like.dtype)
        if like.is_floating_point() and not (dense.is_meta or taken[name].isfinite().all()):
            broken.append(name)
    if wrong:
        raise UserError(
            f"{len(wrong)} tensors of {source} are no weights as training has them ({some(wrong)}): save the network "
            "in float32, before it is quantized"
        )
    if broken:
        raise UserError(
            f"{len(broken)} tensors of {source} hold NaN or infinity ({some(broken)}): take an earlier checkpoint"
        )
    return taken, tuple(f"{kind} converted" for kind in sorted(formats))


def some(names: Iterable[str]) -> str:
    """The first few names."""
    names = list(names)
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
