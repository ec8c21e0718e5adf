"""What is compared: arms, each a config that is trained once for every seed; and how methods are written in a line."""

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
    """A cell of a table as the paper lays it out: a row, a column, and the branch whose score stands there."""

    row: str
    column: str
    branch: str = "B0"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One thing that is compared, trained once for each seed."""

    name: str
    """Of its runs' folders, before the seed."""
    label: str
    """For a person."""
    group: str = ""
    """Arms of one group share data set and network: differences are taken within it."""
    config: TrainConfig
    """Of every run, but for its seed and folder."""
    places: tuple[Place, ...] = ()
    paper: dict[str, tuple[Published, ...]] = dataclasses.field(default_factory=dict)
    """Branch -> what the paper has, a value for each metric of the comparison."""

    def __post_init__(self) -> None:
        if folder_name(self.name) != self.name:
            raise UserError(f"name is {self.name!r}: must be one of a folder, such as {folder_name(self.name)!r}")

    def run_name(self, seed: int) -> str:
        """The folder of a run."""
        return f"{self.name}-seed{seed}"


@dataclass(frozen=True)
class Variant:
    """A method as the user wrote it: its name, and the values it sets beside the method."""

    name: str
    method: str
    changes: dict[str, Any]


def split_methods(text: str) -> list[Variant]:
    """``baseline,dsl,dhm:direction=top-down,branches=B1+B2,mine=dhm:lr=0.05`` taken apart; the values stay text.

    Variants are separated by commas: ``METHOD``, ``METHOD:FIELD=VALUE,...`` or ``NAME=METHOD...``. What begins with the
    name of a field belongs to the variant before it.

    Raises:
        ValueError: nothing, an unknown method or field, or two variants of one name.
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
    """A field as a flag is written, ``mimic-weight``, or as it is called, ``mimic_weight``."""
    return key.strip().replace("-", "_")


def _set_field(variant: Variant, key: str, value: str, part: str) -> None:
    key = _field(key)
    if key not in FIELDS or key in OWN_FIELDS or not value:
        raise UserError(
            f"methods has {part!r}: write METHOD:FIELD=VALUE,FIELD=VALUE with values of `fastdhm train`, such as "
            "dhm:direction=top-down,branches=B1"
        )
    variant.changes[key] = value


def _own_name(variant: Variant) -> str:
    """``dhm-direction=top-down-branches=B1+B2``."""
    return "-".join([variant.method, *(f"{key}={value}" for key, value in variant.changes.items())])


def check_variants(variants: list[Variant]) -> None:
    """``ValueError`` if there is none, if one's method is not known, or if two have the same name."""
    from fastdhm.errors import unknown

    if not variants:
        raise UserError("methods is empty: name at least one, such as baseline,dsl,dhm")
    for variant in variants:
        if variant.method not in METHODS:
            raise unknown("method", variant.method, METHODS)
    twice = [name for name, count in Counter(folder_name(variant.name) for variant in variants).items() if count > 1]
    if twice:
        raise UserError(f"methods has {twice[0]!r} twice: give each a name of its own, as in NAME=METHOD:FIELD=VALUE")


def folder_name(text: str) -> str:
    """``text`` with what is awkward in a file name replaced."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", text).strip("-.") or "arm"


def parse_seeds(text: str) -> tuple[int, ...]:
    """``3`` is the seeds 0, 1 and 2; ``4,7`` or ``[4]`` is a list of seeds.

    Raises:
        ValueError: anything else.
    """
    inside = text.strip().removeprefix("[").removesuffix("]").strip()
    parts = SEED_PARTS.split(inside) if inside else []
    if not parts or not all(part.isdecimal() for part in parts):
        raise UserError(f"seeds is {text}: must be how many, such as 3 (seeds 0, 1, 2), or a list, such as 0,4,7")
    numbers = tuple(int(part) for part in parts)
    if len(numbers) == 1 and "[" not in text:
        if not 1 <= numbers[0] <= 1000:
            raise UserError(f"seeds is {text}: must be 1 to 1000 of them; [{text}] is the one seed {text}")
        return tuple(range(numbers[0]))
    if len(set(numbers)) < len(numbers):
        raise UserError(f"seeds is {text}: each seed once")
    return numbers


def make_config(values: dict[str, Any]) -> TrainConfig:
    """A config of ``values``; ``ValueError`` if they make none."""
    try:
        return TrainConfig(**values)
    except ValueError as error:
        raise UserError(str(error)) from error


def changed(old: TrainConfig, new: TrainConfig) -> list[str]:
    """In which values that decide what is learnt two configs differ, ``epochs: 164 -> 16``; seed and folder aside."""
    return unlike(old, new, free=("seed", *HOW_IT_RUNS))


def unlike(old: TrainConfig, new: TrainConfig, free: tuple[str, ...]) -> list[str]:
    """The values in which two runs differ, as ``name: old -> new``, without those in ``free`` and what changes nothing:
    the folder, the name of the preset that values came from, and a scale of the learning rate that is not used.
    """
    unused = () if old.scale_lr or new.scale_lr else ("lr_batch_size",)
    return differing(old, new, free=("run_dir", "preset", *unused, *free))


def fitting(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """Of what is given for all runs that which ``method`` can have: the rest is about mimicking, or about branches."""
    foreign = {"baseline": (*OF_MIMICKING, *OF_BRANCHES), "dsl": OF_MIMICKING, "dhm": ()}[method]
    return {name: value for name, value in given.items() if name not in foreign}
