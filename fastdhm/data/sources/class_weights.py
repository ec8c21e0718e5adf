"""The weights of the classes of an uneven training set: from a file, or by how many images each class has.

Legend: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fastdhm.data.sources.folder import one_form
from fastdhm.errors import UserError, did_you_mean, few
from fastdhm.system.typed_yaml import read_yaml, typed

LARGEST = 1e30  # so that float32 holds the sum of any batch


def read_class_weights(path: Path) -> dict[str, float]:
    """The weight of each class in a YAML file; ``ValueError`` if it does not hold names and numbers."""
    values = read_yaml(path)
    try:
        weights: dict[str, float] = typed(dict[str, float], values, "class_weights")
        check_class_weights(weights)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return weights


def check_class_weights(weights: Mapping[str, float]) -> None:
    """``ValueError`` unless all are from 0 to ``LARGEST``, and one is above 0."""
    for name, weight in weights.items():
        if not 0 <= weight <= LARGEST:
            raise UserError(f"the weight of class {name!r} is {weight:g}: must be a number from 0 to {LARGEST:g}")
    if not any(weights.values()):
        raise UserError("all weights of classes are 0: at least one must be above 0")


def weights_by_name(weights: Mapping[str, float], classes: Sequence[str]) -> np.ndarray:
    """``float64 [K]`` in the order of ``classes``; ``ValueError`` unless exactly those have a weight.

    A name may be in another form of Unicode than the class: a keyboard and a folder write an accent differently.
    """
    forms = [one_form(name) for name in classes]
    for name in weights:
        if one_form(name) not in forms:
            raise UserError(f"class_weights has {name!r}, which is no class of the images{did_you_mean(name, classes)}")
    given = {one_form(name): weight for name, weight in weights.items()}
    missing = [name for name, form in zip(classes, forms, strict=True) if form not in given]
    if missing:
        raise UserError(f"class_weights lacks {few(missing)}: give every class of the images a weight")
    return np.array([given[form] for form in forms])


def weights_by_count(target_N: np.ndarray, num_classes: int) -> np.ndarray:
    """``float64 [K]``: in inverse proportion to the number of images, with the mean 1; every class has some."""
    weight_K = 1 / np.bincount(target_N, minlength=num_classes)
    return weight_K / weight_K.mean()


def check_every_class(target_N: np.ndarray, classes: Sequence[str], asked: str) -> None:
    """``ValueError`` if a class has no images; ``asked`` is the setting that needs some of each."""
    size_K = np.bincount(target_N, minlength=len(classes))
    empty = [name for name, size in zip(classes, size_K.tolist(), strict=True) if not size]
    if empty:
        raise UserError(
            f"{asked}, and there is no training image of {few(empty)}: add some, take the class out of the data, or "
            f"leave --{asked.partition(' ')[0].replace('_', '-')} out"
        )
