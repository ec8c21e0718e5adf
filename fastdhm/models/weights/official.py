"""The checkpoints of the authors' released code (``d-li14/DHM``), loaded into our networks.

Legend: H number of a branch, as in our names: 1 is nearest the top.
"""

import re
from pathlib import Path

from torch import Tensor

from fastdhm.errors import UserError
from fastdhm.models.base.branched import BranchedModel
from fastdhm.models.families import cifar_resnet, densenet, imagenet_resnet, wrn
from fastdhm.models.families.family import Family
from fastdhm.models.weights.files import Fit, as_weights, differences, prefixes, read, the_one, under

HEAD = re.compile(r"_head(\d+)\.")
# family -> branch -> what the released code calls its parts, in the order of ours (`stages.0`, `stages.1`, ...)
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    imagenet_resnet.FAMILY.name: {
        "B1": ("layer4",),
        "B2": ("layer3", "layer4"),
        "B3": ("layer2", "layer3", "layer4"),
    },
    cifar_resnet.FAMILY.name: {"B1": ("layer3",), "B2": ("layer2", "layer3")},
    densenet.FAMILY.name: {"B1": ("layer3", "bn"), "B2": ("layer2", "transition2", "layer3", "bn")},
    wrn.FAMILY.name: {"B1": ("layer3", "bn"), "B2": ("layer2", "layer3", "bn")},
}
FAMILIES = (imagenet_resnet.FAMILY, cifar_resnet.FAMILY, densenet.FAMILY, wrn.FAMILY)


def load_official(path: str | Path, arch: str, num_classes: int | None = None) -> BranchedModel:
    """Load a checkpoint of the released code as a network with the branches in the file.

    The same images give the same logits: our logits are the (B0, B1, B2) of its forward, stacked. Its heads pool 7x7
    maps, ours pool whole maps, which is the same at 224 pixels.

    Args:
        path: a file that its scripts saved: a state dict, or a checkpoint with one in it, with or without a prefix such
            as the ``module.`` of DataParallel. Nothing in it is executed.
        arch: our name of its architecture, such as ``resnet18``, ``resnet32``, ``wrn-28-10`` or ``densenet-40-12``.
        num_classes: K that the file must have; ``None`` accepts any.

    Raises:
        ValueError: no such file, not a checkpoint, code in the file, an architecture that the released code does not
            have, or weights of another network; says which tensors are missing and which are unknown.
    """
    family = _family(arch)
    state = _state(Path(path))
    classes = len(state["fc.weight"])
    if num_classes not in (None, classes):
        raise UserError(f"{path} holds a network of {classes} classes, not {num_classes}: leave num_classes out")
    branches = tuple(sorted({f"B{head[1]}" for name in state if (head := HEAD.search(name))}))
    known = family.branches(arch)
    if not set(branches) <= set(known):
        raise UserError(
            f"{path} holds branches {', '.join(branches)}, but {arch} has {', '.join(known)}: use the file's own arch"
        )
    model = family.build(arch, classes, branches)
    own = model.state_dict()
    theirs = {released_name(name, PARTS[family.name]): name for name in own}
    # before torch 0.4.1 BatchNorm did not count batches; with a number as momentum the count is not used
    kept = {name for name in theirs if name.endswith("num_batches_tracked") and name not in state}
    expected = {name: own[ours] for name, ours in theirs.items()}
    if wrong := differences(expected, state, kept):
        raise UserError(f"{path} holds the weights of another network than {arch}: tensors {wrong}")
    taken, _ = as_weights(expected, state, str(path))
    model.load_state_dict(own | {theirs[name]: tensor for name, tensor in taken.items()})
    return model


def released_name(name: str, parts: dict[str, tuple[str, ...]]) -> str:
    """Our parameter ``name`` as the released code names it: ``branches.B2.stages.0`` may be ``layer3_head2``."""
    if name.startswith("trunk."):
        return name.removeprefix("trunk.")
    _, branch, part, rest = name.split(".", 3)
    if part == "stages":
        number, rest = rest.split(".", 1)
        part = parts[branch][int(number)]
    return f"{part}_head{branch[1:]}.{rest}"


def released_modules(arch: str, branch: str) -> tuple[str, ...]:
    """The modules of the released code that hold a branch of ``arch``: ``("layer4_head1", "fc_head1")`` for B1."""
    return tuple(f"{part}_head{branch[1:]}" for part in (*PARTS[_family(arch).name][branch], "fc"))


def _family(arch: str) -> Family:
    for family in FAMILIES:
        if re.fullmatch(family.pattern, arch):
            return family
    known = "; ".join(family.rule for family in FAMILIES)
    raise UserError(f"the released code has no network {arch!r} (known: {known})")


def _state(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint, on the CPU, without prefixes in its names."""
    fits = [
        Fit(under(state, prefix)[0], frozenset(), place, prefix)
        for place, state in read(path, "checkpoint").items()
        for prefix in prefixes(state, "fc.weight")
    ]
    if not fits:
        raise UserError(f"{path} has no fc.weight: it is not a checkpoint of the released code, choose another file")
    return the_one(fits, str(path)).state
