"""What a run does to its training images beside crops and flips, as one value.

Legend: B views, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastdhm.data.augment.erase import erased_boxes
from fastdhm.data.augment.policy import OPERATIONS, Policy, Round, grey_round, jitter_rounds, policy_rounds

UNITS = {"rotate": "°", "translate_x": " px", "translate_y": " px", "posterize": " bits"}
WITHOUT_STRENGTH = ("autocontrast", "equalize", "grey")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A policy, colour jitter, grey and random erasing, in this order; draws are functions of (seed, epoch, view)."""

    policy: Policy | None = None
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """How far brightness, contrast, saturation and hue change."""
    grey: float = 0.0
    """Probability that an image turns grey."""
    erase: float = 0.0
    """Probability that an image loses a rectangle."""
    seed: int = 0

    def __bool__(self) -> bool:
        """Whether anything is done at all."""
        return bool(self.policy or any(self.jitter) or self.grey or self.erase)

    def rounds(self, view_B: np.ndarray, epoch: int, size_HW: tuple[int, int]) -> list[Round]:
        """What is done to the bytes of each view."""
        rounds = policy_rounds(self.policy, view_B, epoch, self.seed, size_HW) if self.policy else []
        rounds += jitter_rounds(self.jitter, view_B, epoch, self.seed) if any(self.jitter) else []
        return rounds + [grey_round(self.grey, view_B, epoch, self.seed)] * (self.grey > 0)

    def boxes(self, view_B: np.ndarray, epoch: int, size_HW: tuple[int, int]) -> dict[int, tuple[int, int, int, int]]:
        """What is erased, by the row of its view: see ``erase.erased_boxes``."""
        return erased_boxes(self.erase, view_B, epoch, self.seed, size_HW) if self.erase else {}

    def describe(self, view_B: np.ndarray, epoch: int, size_HW: tuple[int, int]) -> list[str]:
        """In words, what is done to each view: ``rotate -63°, erase``."""
        rounds, boxes = self.rounds(view_B, epoch, size_HW), self.boxes(view_B, epoch, size_HW)
        said = [[_told(*drawn) for drawn in zip(*each, strict=True)] for each in rounds]
        done = [[words[row] for words in said] + ["erase"] * (row in boxes) for row in range(len(view_B))]
        return [", ".join(filter(None, words)) for words in done]


def _told(operation: int, strength: float) -> str:
    name = OPERATIONS[operation]
    if name == "identity":
        return ""
    shown = name.replace("_", " ")
    return shown if name in WITHOUT_STRENGTH else f"{shown} {strength:.3g}{UNITS.get(name, '')}"
