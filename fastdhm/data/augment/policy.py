"""Which operations are drawn for an image, and how strong: TrivialAugment, RandAugment, colour jitter, grey.

Everything is drawn on the host, from (seed, epoch, view), so that it knows which images each operation is for without
asking the device. A view is a sample, or another copy of it where repeated augmentation shows it several times.

Legend: B views, O operations, L levels of strength, R rounds: what is done to an image one after the other.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastdhm.errors import UserError, unknown
from fastdhm.ops.philox import STREAM_OPERATIONS, draw

LEVELS = 31  # of strength, 0 to 30
MAX_OPERATIONS = 14
# The operations that a policy draws from, in torchvision's order, then those of colour jitter and grey.
POLICY_OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "colour", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
OPERATIONS = (*POLICY_OPERATIONS, "hue", "grey")
IDENTITY, HUE, GREY = (OPERATIONS.index(name) for name in ("identity", "hue", "grey"))
JITTERED = np.array([OPERATIONS.index(name) for name in ("brightness", "contrast", "colour")])
ORDERS = np.array([*itertools.permutations(range(3))])
HUES = 15  # shifts of hue that are drawn from; torchvision takes one for all images of a call
COLOUR_BLOCKS = (MAX_OPERATIONS, MAX_OPERATIONS + 1)  # of draws; those before are the policy's
ERASE_BLOCKS = range(MAX_OPERATIONS + 2, MAX_OPERATIONS + 12)
SIGNED = np.array([1 <= number <= 9 for number in range(len(OPERATIONS))])  # shear_x to sharpness
# From the weakest to the strongest level. Wide: Müller and Hutter, "TrivialAugment", ICCV 2021. Narrow: Cubuk et al.,
# "RandAugment", 2020, where images move by shares of their width and height. Both as torchvision has them.
WIDE = {
    "shear_x": (0, 0.99), "shear_y": (0, 0.99), "translate_x": (0, 32), "translate_y": (0, 32), "rotate": (0, 135),
    "brightness": (0, 0.99), "colour": (0, 0.99), "contrast": (0, 0.99), "sharpness": (0, 0.99),
    "posterize": (8, 2), "solarize": (255, 0),
}  # fmt: skip
NARROW = {
    "shear_x": (0, 0.3), "shear_y": (0, 0.3), "translate_x": (0, 150 / 331), "translate_y": (0, 150 / 331),
    "rotate": (0, 30), "brightness": (0, 0.9), "colour": (0, 0.9), "contrast": (0, 0.9), "sharpness": (0, 0.9),
    "posterize": (8, 4), "solarize": (255, 0),
}  # fmt: skip
# What other programs call them.
ELSEWHERE = {
    "ta": "trivial",
    "ta_wide": "trivial",
    "trivialaugmentwide": "trivial",
    "ra": "rand",
    "randaugment": "rand",
}


class Round(NamedTuple):
    """What is done to each view next: the number of its operation in ``OPERATIONS``, and how strongly."""

    operation_B: np.ndarray  # int64
    strength_B: np.ndarray  # float64, in the operation's own unit


@dataclass(frozen=True)
class Policy:
    """How many operations an image gets, drawn from all alike, and at which level; None: it is drawn, too."""

    operations: int
    level: int | None


def parse_policy(name: str) -> Policy | None:
    """``none``, ``trivial`` or ``rand-N-M``: N operations at level M of 30; ``rand`` is ``rand-2-9``, as torchvision's.

    Raises:
        ValueError: no such policy, or numbers out of range.
    """
    if name == "none":
        return None
    if name == "trivial":
        return Policy(1, None)
    numbers = re.fullmatch(r"rand(?:-(\d+)-(\d+))?", name)
    if numbers is None:
        meant = ELSEWHERE.get(name.lower().replace("-", "_"))
        error = unknown("augmentation policy", name, ("none", "trivial", "rand", "rand-N-M"))
        raise UserError(f"augment is {name}: here it is called {meant}") if meant else error
    operations, level = (2, 9) if numbers[1] is None else (int(numbers[1]), int(numbers[2]))
    if not 1 <= operations <= MAX_OPERATIONS or level >= LEVELS:
        rule = f"N is 1 to {MAX_OPERATIONS} operations and M their strength, 0 to {LEVELS - 1}"
        raise UserError(f"augment is {name}: in rand-N-M, {rule}")
    return Policy(operations, level)


def strengths(policy: Policy, size_HW: tuple[int, int]) -> np.ndarray:
    """How strong each operation is at each level, ``[O, L]``; 0 where there is nothing to choose."""
    ends, (height, width) = WIDE if policy.level is None else NARROW, size_HW
    table_OL = np.zeros((len(POLICY_OPERATIONS), LEVELS))
    for name, (weakest, strongest) in ends.items():
        table_OL[POLICY_OPERATIONS.index(name)] = np.linspace(weakest, strongest, LEVELS)
    x, y = (POLICY_OPERATIONS.index(f"translate_{axis}") for axis in "xy")
    if policy.level is not None:
        table_OL[x], table_OL[y] = table_OL[x] * width, table_OL[y] * height
    table_OL[[x, y]] = np.trunc(table_OL[[x, y]] + 1e-6)  # whole pixels, as torchvision's
    posterize = POLICY_OPERATIONS.index("posterize")
    table_OL[posterize] = np.rint(table_OL[posterize])
    return table_OL


def policy_rounds(policy: Policy, view_B: np.ndarray, epoch: int, seed: int, size_HW: tuple[int, int]) -> list[Round]:
    """The operations that each view draws, one after the other."""
    table_OL = strengths(policy, size_HW)
    operation_RB, level_RB, sign_RB, _ = words(view_B, epoch, seed, range(policy.operations))
    operation_RB = operation_RB * len(POLICY_OPERATIONS) >> 32
    level_RB = level_RB * LEVELS >> 32 if policy.level is None else np.full_like(level_RB, policy.level)
    strength_RB = table_OL[operation_RB, level_RB]
    negative_RB = (sign_RB >> 31).astype(bool) & SIGNED[operation_RB]
    return [*map(Round, operation_RB, np.where(negative_RB, -strength_RB, strength_RB))]


def spread_of(jitter: Sequence[float]) -> tuple[float, float, float, float]:
    """How far brightness, contrast, saturation and hue change: of none, one number for the first three, or each."""
    given = (*jitter,) * 3 if len(jitter) == 1 else (*jitter,)
    brightness, contrast, saturation, hue = (*given, 0.0, 0.0, 0.0, 0.0)[:4]
    return brightness, contrast, saturation, hue


def jitter_rounds(jitter: Sequence[float], view_B: np.ndarray, epoch: int, seed: int) -> list[Round]:
    """Factors of brightness, contrast and saturation, each uniform in [max(0, 1 - x), 1 + x], in an order that each
    view draws, and then a shift of hue, one of fifteen between -x and x of the circle.

    torchvision's ``ColorJitter`` is the same, but draws a place for the hue, too.
    """
    *spread_3, hue = jitter
    low_3, high_3 = np.maximum(0, 1 - np.array(spread_3)), 1 + np.array(spread_3)
    factor_B4, place_B4 = (np.stack(block, 1) for block in zip(*words(view_B, epoch, seed, COLOUR_BLOCKS), strict=True))
    strength_B3 = low_3 + (high_3 - low_3) * (factor_B4[:, :3] / 2**32) - 1
    order_B3 = ORDERS[place_B4[:, 0] * len(ORDERS) >> 32]
    rounds = [
        Round(JITTERED[part_B], np.take_along_axis(strength_B3, part_B[:, None], 1)[:, 0]) for part_B in order_B3.T
    ]
    if hue:
        shift_B = hue * ((factor_B4[:, 3] * HUES >> 32) / (HUES // 2) - 1)
        rounds.append(Round(np.where(shift_B == 0, IDENTITY, HUE), shift_B))
    return rounds


def grey_round(probability: float, view_B: np.ndarray, epoch: int, seed: int) -> Round:
    """Which views turn grey."""
    _, coin_RB, _, _ = words(view_B, epoch, seed, COLOUR_BLOCKS[1:])
    return Round(np.where(coin_RB[0] < probability * 2**32, GREY, IDENTITY), np.zeros(len(view_B)))


def words(view_B: np.ndarray, epoch: int, seed: int, blocks: Iterable[int]) -> tuple[np.ndarray, ...]:
    """Four 32-bit words of each block for each view, each ``int64 [blocks, B]``: no two draws share a block."""
    stream_R1 = STREAM_OPERATIONS + (np.array([*blocks], dtype=np.int64)[:, None] << 8)
    return draw(view_B[None, :], epoch, stream_R1, seed)
