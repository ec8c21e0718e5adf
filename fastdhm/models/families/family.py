"""What the families of networks share: how their names are read, how deep their branches are, how they start."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastdhm.errors import UserError
from fastdhm.models.base.branched import BranchedModel

WHOLE_NUMBER = "([1-9][0-9]*)"  # as names spell it


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks that are built alike and named by one pattern."""

    name: str
    pattern: str
    """Regular expression of the whole name; the first family whose pattern fits has the network."""
    rule: str
    """The same for a person, with the numbers that it takes."""
    examples: tuple[str, ...]
    """Names in the paper, in the released code, or often used."""
    image_size: tuple[int, int]
    """Height and width, in pixels, at which the paper runs them. Any other size works."""
    num_classes: int
    """Classes of the data set on which the paper runs them."""
    branches: Callable[[str], tuple[str, ...]]
    """Every branch that can be attached to the network of that name; ``UserError`` if there is none of that depth."""
    build: Callable[..., BranchedModel]
    """``(arch, num_classes, branches)``, and ``dropout`` where the family has it."""
    has_dropout: bool = False


def stage_blocks(arch: str, depth: int, per_block: int, rest: int) -> int:
    """The blocks ``n`` of each stage of a network of ``depth = per_block * n + rest`` layers.

    Raises:
        ValueError: there is no such ``n``; says the rule and the nearest name.
    """
    n, beyond = divmod(depth - rest, per_block)
    if beyond or n < 1:
        nearest = max(1, round((depth - rest) / per_block)) * per_block + rest
        name = arch.replace(str(depth), str(nearest), 1)
        raise UserError(f"{arch}: needs {per_block}n+{rest} layers, n at least 1; the nearest is {name}")
    return n


def branch_blocks(depth: int, blocks: int) -> dict[str, tuple[int, ...]]:
    """The blocks per stage of B1 and B2, for a CIFAR trunk of ``depth`` layers and ``blocks`` in each stage.

    The rule that Tables 6 to 8 show: B1's stage has as many blocks as the trunk's. B2's last stage has half as many,
    rounded up; so has its first in networks of 100 layers and more, while in shallower ones it is whole. The tables
    list no network of 41 to 99 layers, so where between the two it changes is our reading.
    """
    half = math.ceil(blocks / 2)
    return {"B1": (blocks,), "B2": (half if depth >= 100 else blocks, half)}
