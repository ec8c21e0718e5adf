"""Any classifier of torchvision or timm by name, with the branches that :func:`attach` grows from it."""

from difflib import get_close_matches

import torch
from torch import nn

from fastdhm.errors import UserError
from fastdhm.models.attach.attach import attach
from fastdhm.models.base.branched import BranchedModel
from fastdhm.models.families.family import Family

BRANCHES = ("B1", "B2", "B3")  # most networks have enough stages for these; building refuses the others
AUXILIARY = ("googlenet", "inception_v3")  # these return logits of further classifiers in training


def _timm():
    try:
        import timm
    except ImportError as error:
        raise UserError("timm is not installed: pip install timm, or use a network of torchvision") from error
    return timm


def _torchvision():
    import torchvision  # as slow to import as torch

    return torchvision.models


def split(arch: str) -> tuple[str, str]:
    """Library and name; ``UserError`` with the nearest names if the library has no such network."""
    library, name = arch.split(":", 1)
    if library == "timm":
        timm = _timm()
        known, exists = timm.list_models(), timm.is_model(name)
    else:
        known = _torchvision().list_models(module=_torchvision())
        exists = name in known
    if not exists:
        nearest = get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(f'{library}:{near}' for near in nearest)}?" if nearest else ""
        raise UserError(f"{library} has no network {name!r}{hint}")
    return library, name


def create(library: str, name: str, num_classes: int, *, trained: bool = False) -> nn.Module:
    """The plain network; one that gets ``trained`` weights of torchvision takes images as these expect them."""
    if library == "timm":
        return _timm().create_model(name, num_classes=num_classes)
    given = {"aux_logits": False, "init_weights": not trained, "transform_input": trained} if name in AUXILIARY else {}
    return _torchvision().get_model(name, weights=None, num_classes=num_classes, **given)


def build(arch: str, num_classes: int, branches: tuple[str, ...]) -> BranchedModel:
    """The network after the colon as the trunk, randomly initialised by its library, with the named branches.

    Raises:
        ValueError: the library is not installed or has no such network, or the network has too few stages.
    """
    library, name = split(arch)
    device = torch.empty(0).device  # in torch 2.6, torch.get_default_device() ignores `with torch.device`
    try:
        trunk = create(library, name, num_classes)
    except NotImplementedError:  # some compute their sizes with tensors, whose values the meta device does not have
        with torch.device("cpu"):
            trunk = create(library, name, num_classes).to(device)
    size = getattr(trunk, "default_cfg", {}).get("input_size", (3, 224, 224))  # timm's networks state their size
    return attach(trunk, branches=branches, input_size=tuple(size), verbose=False)


def _branches(arch: str) -> tuple[str, ...]:
    split(arch)
    return BRANCHES


FAMILY = Family(
    name="any of torchvision or timm",
    pattern="(torchvision|timm):.+",
    rule="torchvision:NAME or timm:NAME",
    examples=("torchvision:convnext_tiny", "torchvision:mobilenet_v2", "timm:convnext_tiny"),
    image_size=(224, 224),
    num_classes=1000,
    branches=_branches,
    build=build,
)
