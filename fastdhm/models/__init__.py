"""Networks with the paper's side branches, by name."""

from collections.abc import Iterable

from fastdhm.errors import unknown
from fastdhm.models import cifar_resnet, imagenet_resnet
from fastdhm.models.branched import Branch, BranchedModel

__all__ = ["ARCHITECTURES", "Branch", "BranchedModel", "build"]

# arch -> (builder, every branch that can be attached). The main experiments attach B1 and B2; B3 is an ablation.
ARCHITECTURES = {
    **dict.fromkeys(cifar_resnet.LAYOUTS, (cifar_resnet.build, ("B1", "B2"))),
    **{arch: (imagenet_resnet.build, tuple(branches)) for arch, (_, branches) in imagenet_resnet.LAYOUTS.items()},
}
DEFAULT_BRANCHES = ("B1", "B2")


def build(arch: str, num_classes: int, branches: Iterable[str] | None = None) -> BranchedModel:
    """The network ``arch`` with side branches, randomly initialised.

    Args:
        arch: a name in ``ARCHITECTURES``.
        num_classes: K, the size of every classifier.
        branches: which to attach, e.g. ``("B1",)``; ``()`` for the plain network; ``None`` for what the paper's main
            experiments attach, B1 and B2.

    Raises:
        ValueError: an unknown architecture or branch, or fewer than two classes.
    """
    branches = DEFAULT_BRANCHES if branches is None else tuple(sorted(set(branches)))
    check(arch, branches)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}: a classifier needs at least 2 classes")
    make, _ = ARCHITECTURES[arch]
    return make(arch, num_classes, branches)


def check(arch: str, branches: Iterable[str] | None = None) -> None:
    """``ValueError`` if ``arch`` or one of its ``branches`` is not known."""
    if arch not in ARCHITECTURES:
        raise unknown("architecture", arch, ARCHITECTURES)
    _, known_branches = ARCHITECTURES[arch]
    for name in branches or ():
        if name not in known_branches:
            raise unknown(f"branch of {arch}", name, known_branches)
