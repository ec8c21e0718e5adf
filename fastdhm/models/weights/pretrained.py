"""Trunks that were trained before: torchvision's ImageNet weights, or those in a file."""

from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor, nn

from fastdhm.errors import UserError, unknown
from fastdhm.models.base.alone import AloneBranch
from fastdhm.models.base.branched import BranchedModel
from fastdhm.models.base.classifier import classifier_of
from fastdhm.models.families.imagenet_resnet import LAYOUTS
from fastdhm.models.weights.files import Fit, as_weights, differences, prefixes, read, the_one, under

SIZE_CHW = (3, 224, 224)  # of the images, without data, that show a trunk's classifier


@dataclass(frozen=True)
class Pretrained:
    """Which parameters of a model, as ``named_parameters`` names them, were loaded, and which are new."""

    source: str
    """A file, or the name of torchvision's weights."""
    loaded: tuple[str, ...]
    """The trunk's. A phase that trains the others alone freezes these, and their batch-norm statistics."""
    new: tuple[str, ...]
    """The branches', and the trunk's classifier where the file has none or one of another number of classes."""
    notes: tuple[str, ...] = ()
    """Where in the file they lay and what was converted, for people."""


def load_pretrained(
    model: BranchedModel, arch: str, path: str | Path | None = None, *, weights: str = "IMAGENET1K_V1"
) -> Pretrained:
    """Load a trunk's weights, and leave its classifier as it is where the file's has another number of classes.

    Args:
        model: of architecture ``arch``; its trunk is changed in place, its branches are left alone.
        arch: for messages, and the name of the weights where no file is given.
        path: a state dict of the plain network, ``.safetensors`` or what ``torch.save`` wrote, or a checkpoint with one
            in it, under its names or these behind a prefix; nothing in it is executed. ``None`` for torchvision's
            ImageNet weights, downloaded once to torch.hub's folder.
        weights: which of torchvision's; the default are those of the paper's time.

    Raises:
        ValueError: no such file or weights, no network to download them, weights of another architecture, several that
            fit, or numbers that are no weights. The model is then as it was.
    """
    source, sets = _torchvision_weights(arch, weights) if path is None else (str(path), read(Path(path)))
    own, fit = model.trunk.state_dict(), _fit(model, sets, source, arch)
    taken = {name: tensor for name, tensor in fit.state.items() if name not in fit.kept}
    taken, converted = as_weights(own, taken, source)
    own.update(taken)  # which keeps the versions of the modules, as MNASNet asks for
    model.trunk.load_state_dict(own)
    new = tuple(n for n, _ in model.named_parameters() if n.removeprefix("trunk.") not in taken)
    loaded = tuple(n for n, _ in model.named_parameters() if n not in new)
    return Pretrained(source, loaded, new, (*filter(None, [fit.told]), *converted))


def _fit(model: BranchedModel, sets: dict[str, dict[str, Tensor]], source: str, arch: str) -> Fit:
    """The one of the file's sets of tensors that is the trunk's, whatever stands before its names."""
    trunk, own = model.trunk, model.trunk.state_dict()
    layer = _classifier(model)
    of_layer = {name for name in own if layer and name.startswith(f"{layer}.")}
    anchor = next((name for name in own if name not in of_layer), "")
    fits, nearest = [], (-1, "")
    for place, state in sets.items():
        for prefix in dict.fromkeys([*prefixes(state, anchor), ""]):
            taken, rest = under(state, prefix)
            taken = {name: tensor for name, tensor in taken.items() if not _switched_off(trunk, name)}
            kept = _other_classifier(own, of_layer, taken) | _counters(own, taken)
            found = Fit(taken, frozenset(kept), place, prefix, rest)
            wrong = differences(own, taken, kept)
            if not wrong:
                fits.append(found)
            told = f" (under {found.told})" if place or prefix else ""
            nearest = max(nearest, (len(own.keys() & taken.keys()), wrong + told), key=lambda pair: pair[0])
    if not fits:
        raise UserError(f"{source} holds the weights of another network than {arch}: tensors {nearest[1]}")
    return the_one(fits, source)


def _classifier(model: BranchedModel) -> str | None:
    """The trunk's last layer; ``None`` where it has none of its own, such as a normalised one."""
    summary = getattr(model, "summary", None)  # of a model that attach made
    if summary is not None:
        return summary.classifier
    return "branch.fc" if isinstance(model.trunk, AloneBranch) else classifier_of(model.trunk, SIZE_CHW)


def _other_classifier(own: dict[str, Tensor], of_layer: set[str], state: dict[str, Tensor]) -> set[str]:
    """The names of the classifier's tensors, if ``state`` has none of them or those of other classes."""
    given = of_layer & state.keys()
    if not given:
        return of_layer
    same_inputs = given == of_layer and all(own[n].shape[1:] == state[n].shape[1:] for n in of_layer)
    return of_layer if same_inputs and any(own[n].shape != state[n].shape for n in of_layer) else set()


def _counters(own: dict[str, Tensor], state: dict[str, Tensor]) -> set[str]:
    """BatchNorm counted no batches before torch 0.4.1, and the count changes nothing where momentum is a number."""
    return {name for name in own if name.endswith("num_batches_tracked") and name not in state}


def _switched_off(trunk: nn.Module, name: str) -> bool:
    """Whether a tensor is of a part that the network can have and was built without: an auxiliary classifier."""
    part = name.partition(".")[0]
    return getattr(trunk, part, trunk) is None


def _torchvision_weights(arch: str, weights: str) -> tuple[str, dict[str, dict[str, Tensor]]]:
    if arch not in LAYOUTS:
        raise UserError(f"no pre-trained weights are known for {arch} (only for {', '.join(LAYOUTS)}): give a file")
    from torchvision.models import get_model_weights

    choices = get_model_weights(arch)
    if weights not in choices.__members__:
        raise unknown(f"weights of {arch}", weights, choices.__members__)
    chosen = choices[weights]
    file = Path(torch.hub.get_dir(), "checkpoints", chosen.url.rpartition("/")[2])
    if file.exists():
        return str(chosen), read(file)
    try:
        state = chosen.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, HTTPException, RuntimeError) as error:  # no network, no room, or not the bytes it should be
        raise UserError(
            f"the ImageNet weights of {arch} could not be downloaded ({error}). Download {chosen.url} elsewhere and "
            f"put it at {file}, or give its path"
        ) from error
    return str(chosen), {"": state}
