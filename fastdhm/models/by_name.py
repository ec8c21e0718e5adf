"""Networks with side branches, by name."""

import functools
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import torch

from fastdhm.errors import UserError, did_you_mean, first_line, unknown
from fastdhm.models.base.alone import alone
from fastdhm.models.base.branched import BranchedModel
from fastdhm.models.cost import Cost, Inventory, measure
from fastdhm.models.families import cifar_resnet, densenet, imagenet_resnet, mobilenet, wrn, zoo
from fastdhm.models.families.family import Family

# torchvision's ResNets come first: resnet50 and resnet152 match the pattern of the CIFAR ResNets too.
FAMILIES = (imagenet_resnet.FAMILY, cifar_resnet.FAMILY, densenet.FAMILY, wrn.FAMILY, mobilenet.FAMILY, zoo.FAMILY)
DEFAULT_BRANCHES = ("B1", "B2")  # of the main experiments; B3 is an ablation


def build(arch: str, num_classes: int, branches: Iterable[str] | None = None, *, dropout: float = 0.0) -> BranchedModel:
    """The network ``arch`` with side branches, randomly initialised.

    Args:
        arch: a name that matches one of ``FAMILIES``, such as ``resnet50``, ``resnet32``, ``wrn-28-10``,
            ``densenet-bc-100-12``, ``mobilenet``, ``torchvision:convnext_tiny`` or ``timm:convnext_tiny``.
        num_classes: K, the size of every classifier.
        branches: which to attach, e.g. ``("B1",)``; ``()`` for the plain network; ``None`` for B1 and B2, as in the
            paper's main experiments.
        dropout: share of activations dropped in training, in [0, 1). Wide ResNets have it, in the trunk and branches.

    Raises:
        ValueError: an unknown architecture or branch, a depth that the architecture cannot have, dropout out of range
            or for a network without dropout, or fewer than two classes.
    """
    branches = DEFAULT_BRANCHES if branches is None else tuple(sorted(branches))
    check(arch, branches, dropout=dropout)
    if num_classes < 2:
        raise UserError(f"num_classes is {num_classes}: a classifier needs at least 2 classes")
    given = {"dropout": dropout} if dropout else {}
    return family_of(arch).build(arch, num_classes, branches, **given)


def build_alone(arch: str, num_classes: int, branch: str, *, dropout: float = 0.0) -> BranchedModel:
    """Branch ``branch`` of ``arch`` as a network of its own (Table 5), randomly initialised; "B0" is the plain network.

    The model has one classifier, named ``branch``; see :func:`alone`. Raises the errors of :func:`build`.
    """
    model = build(arch, num_classes, () if branch == "B0" else (branch,), dropout=dropout)
    size = getattr(model.trunk, "default_cfg", {}).get("input_size", (3, *family_of(arch).image_size))
    return alone(model, branch, tuple(size))


def family_of(arch: str) -> Family:
    """The family of ``arch``; ``ValueError`` with the nearest name and the naming rules if there is none."""
    for family in FAMILIES:
        if re.fullmatch(family.pattern, arch):
            return family
    examples = [name for family in FAMILIES for name in family.examples]
    rules = "; ".join(family.rule for family in FAMILIES)
    raise UserError(f"unknown architecture {arch!r}{did_you_mean(arch.lower(), examples)} (known: {rules})")


def check(arch: str, branches: Iterable[str] | None = None, *, dropout: float = 0.0) -> None:
    """``ValueError`` if there is no network ``arch``, or if it cannot have one of ``branches`` or ``dropout``."""
    family = family_of(arch)
    known_branches = family.branches(arch)
    names = tuple(branches or ())
    for name in names:
        if name not in known_branches:
            raise unknown(f"branch of {arch}", name, known_branches)
        if names.count(name) > 1:
            raise UserError(f"branches has {name} twice: name each once")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout is {dropout}: must be in [0, 1)")
    if dropout and not family.has_dropout:
        having = [name for other in FAMILIES if other.has_dropout for name in other.examples]
        raise UserError(f"dropout is {dropout}: {arch} has no dropout. Set it to 0, or use one of {', '.join(having)}")


def inventory(
    arch: str,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    branches: Iterable[str] | None = None,
) -> Inventory:
    """Parameters and multiply-adds of ``arch`` and its branches; nothing is computed or allocated.

    Args:
        arch, branches: as in :func:`build`.
        num_classes: K; ``None`` for the number in the paper's data set.
        image_size: height and width in pixels, or the side of a square; ``None`` for the paper's size.

    Raises:
        ValueError: the errors of :func:`build`, or an image size at which the network does not run.
    """
    family = family_of(arch)
    num_classes = family.num_classes if num_classes is None else num_classes
    size_HW = _height_width(family.image_size if image_size is None else image_size)
    with torch.device("meta"):
        model = build(arch, num_classes, branches)
    with _running(arch, *size_HW):
        return Inventory(size_HW, num_classes, measure(model, size_HW))


def costs_alone(
    arch: str, num_classes: int, image_size: int | tuple[int, int], branches: Iterable[str]
) -> dict[str, Cost]:
    """What each branch costs as a network of its own, with the trunk up to its fork; "B0" is the plain network.

    Nothing is computed or allocated. Raises the errors of :func:`inventory`.
    """
    size_HW, costs = _height_width(image_size), {}
    for name in branches:
        with torch.device("meta"):
            model = build(arch, num_classes, () if name == "B0" else (name,))
        with _running(arch, *size_HW):
            costs[name] = measure(alone(model, name, (3, *size_HW)), size_HW)["B0"]
    return costs


def cost_cells(
    arch: str, num_classes: int, image_size: int | tuple[int, int], branches: tuple[str, ...]
) -> dict[str, tuple[str, str]]:
    """:func:`costs_alone` for a table; empty where the network cannot be built here or does not run without data."""
    return _cost_cells(arch, num_classes, _height_width(image_size), tuple(branches))


@functools.lru_cache(maxsize=4)
def _cost_cells(
    arch: str, num_classes: int, image_size: tuple[int, int], branches: tuple[str, ...]
) -> dict[str, tuple[str, str]]:
    with suppress(UserError):
        return {name: cost.cells() for name, cost in costs_alone(arch, num_classes, image_size, branches).items()}
    return {}


def _height_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise UserError(f"image_size is {image_size}: must be 1 or more pixels")
    return height, width


@contextmanager
def _running(arch: str, height: int, width: int) -> Iterator[None]:
    """Any error of the network inside is one of the images' size."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{arch} does not run on images of {height}x{width} pixels: {first_line(error)}") from error
