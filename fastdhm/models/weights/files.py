"""Weights in files of other programs: inside a checkpoint, under a prefix or in another number format.

A file is loaded, with a note on how, if it can be read in one way only. Any other file is refused.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
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

NAMED = 3  # names of each kind that an error lists
DEPTH = 4  # levels of a checkpoint in which tensors are looked for; VISSL has so many
COUNTER = "num_batches_tracked"  # of batch norms; a number as momentum, as everybody has it, needs no count
# torch.compile, FSDP and activation checkpointing add parts to names; torchvision's DenseNet files have old names
RENAMED = (
    (re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."), ""),
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
)


@dataclass(frozen=True)
class Fit:
    """Tensors of a file that fit a network, under the network's names, and where they were found."""

    state: dict[str, Tensor]
    kept: frozenset[str]
    """Names of the network that the file may lack, and does."""
    place: str
    """The entry of the file that holds them; "" is the file itself."""
    prefix: str
    left_out: tuple[str, ...] = ()
    """The other names in the file."""

    @property
    def name(self) -> str:
        """What a user chooses it by, where several fit."""
        return ".".join(filter(None, [self.place, self.prefix.rstrip(".")]))

    @property
    def told(self) -> str:
        """Where they were found, in words."""
        parts = [f"its {self.place!r}"] if self.place else []
        parts += [f"names that begin with {self.prefix!r}"] if self.prefix else []
        parts += [f"without {some(self.left_out)}"] if self.left_out else []
        return ", ".join(parts)


def chosen(source: str | Path) -> tuple[Path, str]:
    """A file and, behind a colon, the entry or prefix in it that is asked for: ``last.pth:model_ema``; "" for none."""
    path, colon, entry = str(source).rpartition(":")
    return (Path(path), entry) if colon and not Path(source).exists() and Path(path).is_file() else (Path(source), "")


def read(path: Path, what: str = "weights file") -> dict[str, dict[str, Tensor]]:
    """Entry of a file -> the tensors in it, by name; nothing in the file is executed.

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
            raise UserError(f"{path} is not a whole {what}, or holds code: it was not loaded") from error
    saved = load_without_code(path, what)
    sets = _sets(saved, DEPTH)
    if not sets:
        found = f" (only {some(list(map(str, saved)))})" if isinstance(saved, dict) and saved else ""
        raise UserError(f"{path} holds no tensors by name{found}: save a network's state_dict() alone")
    return sets


def _is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors, by its suffix or its content: ``.bin`` and ``.pt`` are used for both kinds."""
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
    """The prefixes before ``anchor``, a whole name, in the names of ``state``; "" for the name itself."""
    ends = [name.removesuffix(anchor) for name in state if name.endswith(anchor)]
    return [prefix for prefix in ends if not prefix or prefix.endswith(".")]


def under(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors whose names begin with ``prefix``, without it, and the names of the others."""
    taken = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return taken, tuple(name for name in state if not name.startswith(prefix))


def the_one(fits: list[Fit], source: str, entry: str = "") -> Fit:
    """The only fit of a file, or the one that ``entry`` names; ``ValueError`` if there are several, or none of it."""
    asked = [fit for fit in fits if entry in ("", fit.name, fit.place, fit.prefix.rstrip("."))]
    if len(asked) == 1:
        return asked[0]
    names = " or ".join(f"{source}:{fit.name}".rstrip(":") for fit in asked or fits)
    if not asked:
        raise UserError(f"{source} has no network that fits under {entry!r}: give {names}")
    raise UserError(f"{source} holds {len(asked)} networks that fit: give one of them, {names}")


def differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor], kept: Iterable[str]) -> str:
    """How ``state`` differs from the network's tensors ``own``, except for ``kept``; "" if it fits."""
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
    """The tensors of ``state`` in the number formats of ``own``, and notes on what was converted.

    Raises:
        ValueError: tensors with integers or complex numbers in place of weights, NaN or infinity; names them.
    """
    taken, formats, wrong, broken = {}, set(), [], []
    for name, given in state.items():
        like = own[name]
        dense = given.to_dense() if given.layout != torch.strided else given
        kind = str(given.dtype).removeprefix("torch.") if dense is given else f"sparse {given.dtype}"
        if name.endswith(COUNTER) and _is_whole(dense):  # whoever halves a whole state dict halves the counts too
            dense = dense.nan_to_num(posinf=float(torch.iinfo(torch.int32).max)).to(like.dtype)
        if dense.is_quantized or dense.is_complex() or dense.is_floating_point() != like.is_floating_point():
            wrong.append(f"{name} {kind}")
            continue
        if dense.dtype != like.dtype or given.layout != torch.strided:
            formats.add(kind)
        taken[name] = dense.to(like.dtype)
        if like.is_floating_point() and not (dense.is_meta or taken[name].isfinite().all()):
            broken.append(name)
    if wrong:
        raise UserError(
            f"{source} holds {counted(wrong)} in a number format that cannot be trained ({some(wrong)}): save the "
            "network in float32, before it is quantized"
        )
    if broken:
        raise UserError(
            f"{source} holds {counted(broken)} with NaN or infinity ({some(broken)}): use an earlier checkpoint"
        )
    return taken, tuple(f"{kind} converted" for kind in sorted(formats))


def _is_whole(count: Tensor) -> bool:
    """Whether a count in a float is a whole number, or too large for its format."""
    return bool(((count == count.round()) & (count >= 0)).all()) if count.is_floating_point() else False


def counted(names: Sequence[str]) -> str:
    """``1 tensor``, ``2 tensors``."""
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


def some(names: Iterable[str]) -> str:
    """The first few names."""
    names = list(names)
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
