"""Greyscale of more than 8 bits to 8: one rule for each type, never by what the picture itself holds.

So equal values of two pictures of a set stay equal, and relative brightness is kept. Unsigned integers of n bits
range from 0 to 2**n - 1, floats from 0 to 1. Signed and 32-bit integers, and floats far beyond 1, have no range that
anybody could know (thermal cameras, CT, counts): they need one that is given. It replaces the types' own as well, as
for 12 bits that were saved in 16. What TIFF tags and comments say of the extremes is not looked at: writers put each
picture's own there. Legend: H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

GreyRange = tuple[float, float]
"""The value that becomes black, and the one that becomes white; what is beyond them is clipped."""

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
WHITE_IS_ZERO, UNSIGNED, SIGNED = 0, 1, 2
OVERSHOOT = 1.0  # how far floats may lie outside 0 to 1, as after a sharpening filter, and still be of that range


class UnknownRange(ValueError):
    """Values that no rule says the range of."""


@dataclass(frozen=True)
class Grey:
    """What the samples of a deep picture are."""

    kind: str
    bits: int | None
    """Of unsigned integers up to 16 bits; None: no range by type, or a float's."""
    unsigned: bool
    inverted: bool
    """0 is white, as TIFF can say and Pillow does not heed in more than 8 bits."""
    largest: float | None = None


def grey_of(image: Image) -> Grey | None:
    """What the samples of ``image`` are, as it was opened; None if they have 8 bits, from 0 to 255."""
    tags = getattr(image, "tag_v2", {})
    bits, kind = _first(tags.get(BITS_PER_SAMPLE, 16)), _first(tags.get(SAMPLE_FORMAT, UNSIGNED))
    if not (image.mode.startswith("I") or image.mode == "F" or (image.mode == "L" and kind == SIGNED)):
        return None
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    if image.mode == "F":
        return Grey("float", None, False, inverted)
    # Older Pillows open 16-bit PNGs as "I", which is 32-bit, and so do all with a PGM, scaled to 16 bits.
    if image.mode.startswith("I;16") or (not tags and image.format in ("PNG", "PPM")):
        bits = bits if bits in (12, 16) else 16
        return Grey(f"{bits}-bit", bits, True, inverted)
    signed = " signed" if kind == SIGNED else ""
    return Grey(f"{bits if tags else 32}-bit{signed} integer", None, kind == UNSIGNED, inverted)


def to_8_bits(image: Image, grey: Grey, given: GreyRange | None) -> Image:
    """8-bit RGB, with ``info["grey"]``; ``UnknownRange`` if there is none by type, nor one ``given``."""
    import numpy as np
    from PIL import Image

    value_HW = np.asarray(image)
    if grey.unsigned and value_HW.dtype == np.int32:
        value_HW = value_HW.view(np.uint32)
    if value_HW.dtype == np.uint8:  # of signed ones, which Pillow takes as they lie
        value_HW = value_HW.view(np.int8)
    finite_HW = np.nan_to_num(value_HW, posinf=0, neginf=0) if grey.kind == "float" else value_HW
    low, high = float(finite_HW.min(initial=0)), float(finite_HW.max(initial=0))
    if given is None and grey.bits is not None:
        level_HW = (value_HW >> (grey.bits - 8)).astype(np.uint8)  # exact for 8 bits that were made 16 in either way
    else:
        if given is None:
            _refuse_unknown(grey, low, high)
        black, white = given or (0.0, 1.0)
        number_HW = np.nan_to_num(value_HW.astype(np.float64), nan=black, posinf=white, neginf=black)
        scaled_HW = (number_HW - black) * (255 / (white - black))
        level_HW = np.clip(scaled_HW + 0.5, 0, 255).astype(np.uint8)
    if grey.inverted:
        level_HW = 255 - level_HW
    key = image.info.get("transparency")
    if key is not None:
        level_HW = np.where(value_HW == key, np.uint8(255), level_HW)
    rgb = Image.fromarray(level_HW).convert("RGB")
    rgb.info["grey"] = replace(grey, largest=high)
    return rgb


@dataclass
class DeepPictures:
    """The deep ones among some pictures: how many, of what kinds, and how much of their range they use."""

    count: int = 0
    kinds: set[str] = field(default_factory=set)
    bits: int = 32
    """The fewest of a kind that ranges by its type."""
    largest: float = 0
    """Of those kinds."""

    def note(self, image: Image) -> None:
        """Count ``image``, which ``to_8_bits`` made, or not."""
        grey = image.info.get("grey")
        if grey:
            self.add(DeepPictures(1, {grey.kind}, grey.bits or 32, grey.largest if grey.bits else 0))

    def add(self, others: DeepPictures) -> None:
        """Count those too."""
        self.count, self.kinds = self.count + others.count, self.kinds | others.kinds
        self.bits, self.largest = min(self.bits, others.bits), max(self.largest, others.largest)

    def said(self, given: GreyRange | None) -> str | None:
        """How they were taken, and how they could be better, in one sentence; None if there are none."""
        if not self.count:
            return None
        what = f"{self.count:,} images of {', '.join(sorted(self.kinds))} grey"
        how = f"{what}, taken over the range of their type"
        if given:
            return f"{what}, taken from {given[0]:g} (black) to {given[1]:g} (white)"
        bits = max(8, int(self.largest).bit_length())
        if self.largest and bits + 2 <= self.bits:
            return (
                f"{how}, of which they use little: the largest value is {self.largest:,.0f}. "
                f"--grey-range 0,{2**bits - 1} takes them as {bits} bits"
            )
        return how


def _refuse_unknown(grey: Grey, low: float, high: float) -> None:
    if grey.kind != "float" or low < -OVERSHOOT or high > 1 + OVERSHOOT:
        which = "floats count from 0 to 1" if grey.kind == "float" else "they have no range of their own"
        raise UnknownRange(
            f"{grey.kind} grey from {low:g} to {high:g}, and {which}: say what is black and white in all of the set "
            "with --grey-range LOW,HIGH"
        )


def _first(value):
    return value[0] if isinstance(value, tuple) else value
