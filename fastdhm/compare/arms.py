"""The arms of a comparison (each a config that is trained once per seed), and how the command line writes methods."""

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fastdhm.config import TrainConfig
from fastdhm.engine.saved.checkpoint import HOW_IT_RUNS, differing
from fastdhm.errors import UserError
from fastdhm.methods import METHODS

FIELDS = tuple(field.name for field in dataclasses.fields(TrainConfig))
# What the comparison sets for each run itself.
OWN_FIELDS = ("run_dir", "seed", "method")
OF_MIMICKING = ("direction", "sampler", "sample_every", "keep_prob", "branch_sets", "mimic_weight")
OF_BRANCHES = ("grad_cosine", "ce_weight")
SEED_PARTS = re.compile(r"[\s,]+")

# The paper's value of a metric: mean and, where it states one, standard deviation.
Published = tuple[float, float | None]


@dataclass(frozen=True)
class Place:
    """A cell of a table of the paper: row, column, and the branch whose score is in it."""

    row: str
    column: str
    branch: str = "B0"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the things that are compared; it is trained once for each seed."""

    name: str
    """The name of its runs' folders, before the seed."""
    label: str
    """The name that users read."""
    group: str = ""
    """Arms of one group share data set and network: only arms of the same group are compared."""
    config: TrainConfig
    """The config of all its runs, without seed and folder."""
    places: tuple[Place, ...] = ()
    paper: dict[str, tuple[Published, ...]] = dataclasses.field(default_factory=dict)
    """Branch -> the paper's numbers, one for each metric of the comparison."""

    def __post_init__(self) -> None:
        if folder_name(self.name) != self.name:
            raise UserError(f"name is {self.name!r}: must be a valid folder name, such as {folder_name(self.name)!r}")

    def run_name(self, seed: int) -> str:
        """The name of a run's folder."""
        return f"{self.name}-seed{seed}"


@dataclass(frozen=True)
class Variant:
    """A method as the user wrote it: its name, and the other values that it sets."""

    name: str
    method: str
    changes: dict[str, Any]


def split_methods(text: str) -> list[Variant]:
    """Split ``baseline,dsl,dhm:direction=top-down,branches=B1+B2,mine=dhm:lr=0.05`` into variants; values stay text.

    Commas separate the variants: ``METHOD``, ``METHOD:FIELD=VALUE,...`` or ``NAME=METHOD...``. A part that begins with
    the name of a field belongs to the variant before it.

    Raises:
        ValueError: no variant, an unknown method or field, or two variants with the same name.
    """
    variants: list[Variant] = []
    for part in (part.strip() for part in text.strip().removeprefix("[").removesuffix("]").split(",")):
        key, _, value = part.partition("=")
        if _field(key) in FIELDS and variants:
            _set_field(variants[-1], key, value, part)
            continue
        head, _, first = part.partition(":")
        name, _, method = head.rpartition("=")
        variants.append(Variant(name, method, {}))
        if first:
            _set_field(variants[-1], *first.partition("=")[::2], part)
    named = [Variant(v.name or _own_name(v), v.method, v.changes) for v in variants]
    check_variants(named)
    return named


def _field(key: str) -> str:
    """The name of a field that is written as it is, ``mimic_weight``, or as its flag, ``mimic-weight``."""
    return key.strip().replace("-", "_")


def _set_field(variant: Variant, key: str, value: str, part: str) -> None:
    key = _field(key)
    if key not in FIELDS or key in OWN_FIELDS or not value:
        raise UserError(
            f"methods has {part!r}: write METHOD:FIELD=VALUE,FIELD=VALUE with settings of `fastdhm train`, such as "
            "dhm:direction=top-down,branches=B1"
        )
    variant.changes[key] = value


def _own_name(variant: Variant) -> str:
    """``dhm-direction=top-down-branches=B1+B2``."""
    return "-".join([variant.method, *(f"{key}={value}" for key, value in variant.changes.items())])


def check_variants(variants: list[Variant]) -> None:
    """``ValueError`` if there is none, if a method is unknown, or if two have the same name."""
    from fastdhm.errors import unknown

    if not variants:
        raise UserError("methods is empty: give at least one, such as baseline,dsl,dhm")
    for variant in variants:
        if variant.method not in METHODS:
            raise unknown("method", variant.method, METHODS)
    twice = [name for name, count in Counter(folder_name(variant.name) for variant in variants).items() if count > 1]
    if twice:
        raise UserError(f"methods has {twice[0]!r} twice: give each its own name, as in NAME=METHOD:FIELD=VALUE")


def folder_name(text: str) -> str:
    """``text`` as a file name: other characters are replaced."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", text).strip("-.") or "arm"


def parse_seeds(text: str) -> tuple[int, ...]:
    """``3`` is the seeds 0, 1 and 2; ``4,7`` or ``[4]`` is a list of seeds.

    Raises:
        ValueError: anything else.
    """
    inside = text.strip().removeprefix("[").removesuffix("]").strip()
    parts = SEED_PARTS.split(inside) if inside else []
    if not parts or not all(part.isdecimal() for part in parts):
        raise UserError(f"seeds is {text}: must be a count, such as 3 (seeds 0, 1, 2), or a list, such as 0,4,7")
    numbers = tuple(int(part) for part in parts)
    if len(numbers) == 1 and "[" not in text:
        if not 1 <= numbers[0] <= 1000:
            raise UserError(f"seeds is {text}: a count must be 1 to 1000; for the one seed {text}, write [{text}]")
        return tuple(range(numbers[0]))
    if len(set(numbers)) < len(numbers):
        raise UserError(f"seeds is {text}: must have each seed only once")
    return numbers


def make_config(values: dict[str, Any]) -> TrainConfig:
    """A config of ``values``; ``ValueError`` if they are not valid."""
    try:
        return TrainConfig(**values)
    except ValueError as error:
        raise UserError(str(error)) from error


def changed(old: TrainConfig, new: TrainConfig) -> list[str]:
    """The values that decide what is learnt and that differ, ``epochs: 164 -> 16``; without seed and folder."""
    return unlike(old, new, free=("seed", *HOW_IT_RUNS))


def unlike(old: TrainConfig, new: TrainConfig, free: tuple[str, ...]) -> list[str]:
    """The values in which two runs differ, as ``name: old -> new``, without those in ``free``.

    Values without any effect do not count: the folder, the name of the preset, and ``lr_batch_size`` if the learning
    rate is not scaled.
    """
    unused = () if old.scale_lr or new.scale_lr else ("lr_batch_size",)
    return differing(old, new, free=("run_dir", "preset", *unused, *free))


def fitting(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """The values in ``given``, meant for all runs, that ``method`` can use: some are only for mimicking or branches."""
    foreign = {"baseline": (*OF_MIMICKING, *OF_BRANCHES), "dsl": OF_MIMICKING, "dhm": ()}[method]
    return {name: value for name, value in given.items() if name not in foreign}
