"""Trunks that were trained before: torchvision's ImageNet weights, or those in a file."""

from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastdhm.errors import UserError, unknown
from fastdhm.files import load_without_code
from fastdhm.models.branched import BranchedModel
from fastdhm.models.imagenet_resnet import LAYOUTS

NAMED = 3  # names that an error lists of each kind


@dataclass(frozen=True)
class Pretrained:
    """Which parameters of a model, as ``named_parameters`` names them, were loaded, and which are new."""

    source: str
    """A file, or the name of torchvision's weights."""
    loaded: tuple[str, ...]
    """The trunk's. A phase that trains the others alone freezes these, and their batch-norm statistics."""
    new: tuple[str, ...]
    """The branches', and the trunk's classifier where the file has none or one of another number of classes."""


def load_pretrained(
    model: BranchedModel, arch: str, path: str | Path | None = None, *, weights: str = "IMAGENET1K_V1"
) -> Pretrained:
    """Load a trunk's weights, and leave its classifier as it is where the file's has another number of classes.

    Args:
        model: of architecture ``arch``; its trunk is changed in place, its branches are left alone.
        arch: for messages, and the name of the weights where no file is given.
        path: a state dict of the plain network, ``.safetensors`` or what ``torch.save`` wrote; nothing in it is
            executed. ``None`` for torchvision's ImageNet weights, downloaded once to torch.hub's folder.
        weights: which of torchvision's; the default are those of the paper's time.

    Raises:
        ValueError: no such file or weights, no network to download them, or weights of another architecture. The
            model is then as it was.
    """
    source, state = _torchvision_weights(arch, weights) if path is None else (str(path), _read(Path(path)))
    trunk = model.trunk
    own = trunk.state_dict()
    dropped = _other_classifier(trunk, state)
    state = {name: tensor for name, tensor in state.items() if name not in dropped}
    # BatchNorm counted no batches before torch 0.4.1, and the count changes nothing where momentum is a number
    kept = dropped | {name for name in own if name.endswith("num_batches_tracked") and name not in state}
    refuse_another_network(own, state, kept, source, arch)
    trunk.load_state_dict({name: own[name] if name in kept else state[name] for name in own})
    new = tuple(n for n, _ in model.named_parameters() if not n.startswith("trunk.") or n[len("trunk.") :] in dropped)
    return Pretrained(source, tuple(n for n, _ in model.named_parameters() if n not in new), new)


def _torchvision_weights(arch: str, weights: str) -> tuple[str, dict[str, Tensor]]:
    if arch not in LAYOUTS:
        raise UserError(f"no pre-trained weights are known for {arch} (only for {', '.join(LAYOUTS)}): give a file")
    from torchvision.models import get_model_weights

    choices = get_model_weights(arch)
    if weights not in choices.__members__:
        raise unknown(f"weights of {arch}", weights, choices.__members__)
    chosen = choices[weights]
    file = Path(torch.hub.get_dir(), "checkpoints", chosen.url.rpartition("/")[2])
    if file.exists():
        return str(chosen), _read(file)
    try:
        return str(chosen), chosen.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, HTTPException, RuntimeError) as error:  # no network, no room, or not the bytes it should be
        raise UserError(
            f"the ImageNet weights of {arch} could not be downloaded ({error}). Download {chosen.url} elsewhere and "
            f"put it at {file}, or give its path"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU."""
    if not path.is_file():
        raise UserError(f"no weights at {path}: there is no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (ValueError, OSError, SafetensorError) as error:
            raise UserError(f"{path} is no whole weights file, or holds code: it was not loaded") from error
    state = load_without_code(path, "weights file")
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        found = f" but {_some(list(map(str, state)))}" if isinstance(state, dict) and state else ""
        raise UserError(f"{path} holds no tensors by name{found}: save a network's state_dict() alone")
    return state


def _other_classifier(trunk: nn.Module, state: dict[str, Tensor]) -> set[str]:
    """The tensors of the trunk's last linear layer, if ``state`` has none of it or those of other classes."""
    name, layer = [(n, module) for n, module in trunk.named_modules() if isinstance(module, nn.Linear)][-1]
    own = {f"{name}.{suffix}": tensor for suffix, tensor in layer.state_dict().items()}
    given = {n: state[n] for n in own if n in state}
    if not given:
        return set(own)
    same_inputs = given.keys() == own.keys() and all(own[n].shape[1:] == given[n].shape[1:] for n in own)
    return set(own) if same_inputs and any(own[n].shape != given[n].shape for n in own) else set()


def refuse_another_network(
    own: dict[str, Tensor], state: dict[str, Tensor], kept: set[str], source: str, arch: str
) -> None:
    missing = [name for name in own if name not in state and name not in kept]
    extra = [name for name in state if name not in own]
    reshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    kinds = {"missing": missing, "unknown": extra, "of another shape": reshaped}
    if any(kinds.values()):
        found = "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names)
        raise UserError(f"{source} holds the weights of another network than {arch}: tensors {found}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
