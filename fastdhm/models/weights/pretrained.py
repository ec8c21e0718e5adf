"""Pre-trained trunks: torchvision's ImageNet weights, or weights in a file; and branches, from a run of ours."""

from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdhm.errors import UserError, unknown
from fastdhm.models.base.alone import AloneBranch
from fastdhm.models.base.branched import BranchedModel
from fastdhm.models.base.classifier import classifier_of
from fastdhm.models.families.imagenet_resnet import LAYOUTS
from fastdhm.models.weights.files import Fit, as_weights, chosen, differences, prefixes, read, the_one, under

CLASSIFIER = 2  # tensors of one: weight and bias
SIZE_CHW = (3, 224, 224)  # of the images, without data, in the run that finds a trunk's classifier


@dataclass(frozen=True)
class Pretrained:
    """Which parameters of a model, as ``named_parameters`` names them, were loaded, and which are new."""

    source: str
    """A file, or the name of torchvision's weights."""
    loaded: tuple[str, ...]
    """A phase that trains only the new ones freezes these and their batch-norm statistics."""
    new: tuple[str, ...]
    """Classifiers that the file lacks or has for other classes, and branches that it lacks or has of another build."""
    notes: tuple[str, ...] = ()
    """Where in the file they were found, and what was converted or left out, in words."""


def load_pretrained(
    model: BranchedModel, arch: str, path: str | Path | None = None, *, weights: str = "IMAGENET1K_V1"
) -> Pretrained:
    """Load a trunk's weights; the classifier stays new if the file's has another number of classes.

    Branches that lie beside the trunk, as in a checkpoint of a run, are loaded too where they are built alike.

    Args:
        model: of architecture ``arch``; changed in place.
        arch: for messages, and for torchvision's weights if no file is given.
        path: a ``.safetensors`` file or one of ``torch.save``: a state dict of the plain network, or a checkpoint with
            one in it, with or without a prefix in its names; nothing in it is executed. Where several networks in it
            fit, ``FILE:ENTRY`` names one. ``None`` for torchvision's ImageNet weights, downloaded once to torch.hub's
            folder.
        weights: which of torchvision's; the default is from the time of the paper.

    Raises:
        ValueError: no such file or weights, a failed download, weights of another architecture, several that fit, or
            values that are not weights. The model has then not changed.
    """
    file, entry = (None, "") if path is None else chosen(path)
    source, sets = _torchvision_weights(arch, weights) if file is None else (str(file), read(file))
    own, fit = model.trunk.state_dict(), _fit(model, sets, source, arch, entry)
    taken = {name: tensor for name, tensor in fit.state.items() if name not in fit.kept}
    taken, converted = as_weights(own, taken, source)
    beside, told = _branches(model, sets[fit.place], fit, source)
    own.update(taken)  # this keeps the version numbers of the modules, which MNASNet needs
    model.trunk.load_state_dict(own)
    model.branches.load_state_dict(model.branches.state_dict() | beside)
    begun = {f"trunk.{name}" for name in taken} | {f"branches.{name}" for name in beside}
    new = tuple(n for n, _ in model.named_parameters() if n not in begun)
    loaded = tuple(n for n, _ in model.named_parameters() if n in begun)
    lost = tuple(
        f"its classifier of {len(fit.state[n])} classes left out" for n in sorted(fit.kept & fit.state.keys())[:1]
    )
    left_out = tuple(name for name in fit.left_out if not told or "branches." not in name)
    notes = (replace(fit, left_out=left_out).told, *lost, *told, *converted)
    return Pretrained(source, loaded, new, tuple(filter(None, notes)))


def _branches(
    model: BranchedModel, state: dict[str, Tensor], fit: Fit, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of the branches beside a trunk in a file, by their names in ``model.branches``, and notes on them.

    A branch fits if it has the tensors of ours in their shapes, but for a classifier of other classes.
    """
    root = fit.prefix.removesuffix("trunk.")
    begun: dict[str, Tensor] = {}
    told: list[str] = []
    for branch, module in model.branches.items() if root != fit.prefix else ():
        own, (given, _) = module.state_dict(), under(state, f"{root}branches.{branch}.")
        if not given:
            continue
        other = {name for name in own if name in given and own[name].shape != given[name].shape}
        alike = own.keys() == given.keys() and all(own[name].shape[1:] == given[name].shape[1:] for name in other)
        if not alike or len(other) > CLASSIFIER:
            told.append(f"its {branch} is built otherwise, left out")
            continue
        taken, _ = as_weights(own, {name: tensor for name, tensor in given.items() if name not in other}, source)
        begun |= {f"{branch}.{name}": tensor for name, tensor in taken.items()}
        told.append(f"its {branch}" + " but for the classifier" * bool(other))
    return begun, tuple(told)


def _fit(model: BranchedModel, sets: dict[str, dict[str, Tensor]], source: str, arch: str, entry: str) -> Fit:
    """The set of tensors in the file that fits the trunk, with any prefix in its names."""
    trunk, own = model.trunk, model.trunk.state_dict()
    layer = _classifier(model)
    of_layer = {name for name in own if layer and name.startswith(f"{layer}.")}
    anchor = next((name for name in own if name not in of_layer), "")
    fits, nearest = [], (-1, "")
    for place, state in sets.items():
        for prefix in dict.fromkeys([*prefixes(state, anchor), ""]):
            taken, rest = under(state, prefix)
            taken = {name: tensor for name, tensor in taken.items() if not switched_off(trunk, name)}
            heads = {name for name in taken if layer and name.startswith(f"{layer}.")}
            if heads and not heads & of_layer:  # of other layers, such as MoCo's: it is another classifier
                taken = {name: tensor for name, tensor in taken.items() if name not in heads}
                rest += tuple(prefix + name for name in sorted(heads))
            kept = _other_classifier(own, of_layer, taken) | _counters(own, taken)
            found = Fit(taken, frozenset(kept), place, prefix, rest)
            wrong = differences(own, taken, kept)
            if not wrong:
                fits.append(found)
            told = f" (under {found.told})" if place or prefix else ""
            nearest = max(nearest, (len(own.keys() & taken.keys()), wrong + told), key=lambda pair: pair[0])
    if not fits:
        raise UserError(f"{source} holds the weights of another network than {arch}: tensors {nearest[1]}")
    return the_one(fits, source, entry)


def _classifier(model: BranchedModel) -> str | None:
    """The name of the trunk's classifier; ``None`` if it has no separate layer for it."""
    summary = getattr(model, "summary", None)  # attach sets it
    if summary is not None:
        return summary.classifier
    return "branch.fc" if isinstance(model.trunk, AloneBranch) else classifier_of(model.trunk, SIZE_CHW)


def _other_classifier(own: dict[str, Tensor], of_layer: set[str], state: dict[str, Tensor]) -> set[str]:
    """The names of the classifier's tensors if ``state`` has none of them, or has them for other classes; else none."""
    given = of_layer & state.keys()
    if not given:
        return of_layer
    same_inputs = given == of_layer and all(own[n].shape[1:] == state[n].shape[1:] for n in of_layer)
    return of_layer if same_inputs and any(own[n].shape != state[n].shape for n in of_layer) else set()


def _counters(own: dict[str, Tensor], state: dict[str, Tensor]) -> set[str]:
    """Missing batch counts: before torch 0.4.1 BatchNorm did not count, and a number as momentum needs no count."""
    return {name for name in own if name.endswith("num_batches_tracked") and name not in state}


def switched_off(trunk: nn.Module, name: str) -> bool:
    """Whether a tensor is of an optional part that the network was built without, such as an auxiliary classifier."""
    part = name.partition(".")[0]
    return getattr(trunk, part, trunk) is None


def _torchvision_weights(arch: str, weights: str) -> tuple[str, dict[str, dict[str, Tensor]]]:
    if arch not in LAYOUTS:
        raise UserError(f"there are no pre-trained weights for {arch} (only for {', '.join(LAYOUTS)}): give a file")
    from torchvision.models import get_model_weights

    choices = get_model_weights(arch)
    if weights not in choices.__members__:
        raise unknown(f"weights of {arch}", weights, choices.__members__)
    return str(choices[weights]), {"": download(choices[weights], arch)}


def download(chosen: Any, arch: str) -> dict[str, Tensor]:
    """Weights of torchvision, from torch.hub's folder or once from the network; ``chosen`` is a member of its enums."""
    file = Path(torch.hub.get_dir(), "checkpoints", chosen.url.rpartition("/")[2])
    try:
        if not file.exists():
            chosen.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, HTTPException, RuntimeError) as error:  # no network, no room, or wrong bytes
        raise UserError(
            f"the ImageNet weights of {arch} could not be downloaded ({error}): download {chosen.url} elsewhere, then "
            f"put the file at {file} or give its path"
        ) from error
    return read(file)[""]  # which knows the old names in some of them
