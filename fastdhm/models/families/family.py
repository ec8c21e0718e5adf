"""What the families of networks share: how their names are read, and how deep they and their branches are."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from fastdhm.errors import UserError
from fastdhm.models.base.branched import BranchedModel

WHOLE_NUMBER = "([1-9][0-9]{0,8})"  # in a name
MOST_LAYERS = 2000  # the paper's deepest network has 1202; a much deeper one takes minutes to build
MOST_WIDTH = 1000  # of a name's factor or growth; the paper's largest are 10 and 40


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks that are built alike and named by one pattern."""

    name: str
    pattern: str
    """Regular expression for the whole name; the first family that matches builds the network."""
    rule: str
    """The pattern in words, with the numbers that it allows."""
    examples: tuple[str, ...]
    """Names in the paper, in the released code, or often used."""
    image_size: tuple[int, int]
    """Height and width, in pixels, of the images in the paper. Other sizes work too."""
    num_classes: int
    """The number of classes in the paper's data set."""
    branches: Callable[[str], tuple[str, ...]]
    """Network's name -> every branch that it can have; ``UserError`` if there is no network of that depth."""
    build: Callable[..., BranchedModel]
    """Takes ``(arch, num_classes, branches)``, and ``dropout`` if the family has it."""
    has_dropout: bool = False


def parts(pattern: str, arch: str) -> tuple[str, ...]:
    """The groups of a family's pattern in the name of one of its networks."""
    found = re.fullmatch(pattern, arch)
    assert found is not None  # a family is found by its pattern
    return found.groups()


def stage_blocks(arch: str, depth: int, per_block: int, rest: int) -> int:
    """The blocks ``n`` of each stage of a network of ``depth = per_block * n + rest`` layers.

    Raises:
        ValueError: there is no such ``n``, or more than :data:`MOST_LAYERS` layers; says the rule and the nearest name.
    """
    if depth > MOST_LAYERS:
        raise UserError(f"{arch} has {depth:,} layers: must be {MOST_LAYERS:,} or fewer")
    n, beyond = divmod(depth - rest, per_block)
    if beyond or n < 1:
        nearest = max(1, round((depth - rest) / per_block)) * per_block + rest
        name = arch.replace(str(depth), str(nearest), 1)
        raise UserError(f"{arch} has {depth} layers: must be {per_block}n+{rest}, n at least 1. The nearest is {name}")
    return n


def check_width(arch: str, width: int) -> None:
    """``ValueError`` if the width in the name ``arch`` is larger than :data:`MOST_WIDTH`."""
    if width > MOST_WIDTH:
        raise UserError(f"{arch} has width {width:,}: must be {MOST_WIDTH:,} or less")


def branch_blocks(depth: int, blocks: int) -> dict[str, tuple[int, ...]]:
    """The blocks per stage of B1 and B2, for a CIFAR trunk of ``depth`` layers with ``blocks`` in each stage.

    Tables 6 to 8 show this rule. B1's stage has as many blocks as the trunk's. B2's last stage has half as many,
    rounded up. B2's first stage has half as many from 100 layers on, and as many as the trunk's in shallower networks.
    The tables list no network of 41 to 99 layers, so the limit of 100 is our reading.
    """
    half = math.ceil(blocks / 2)
    return {"B1": (blocks,), "B2": (half if depth >= 100 else blocks, half)}
