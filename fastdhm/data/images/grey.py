"""Deep greyscale (more than 8 bits) to 8 bits: the range depends on the type, never on the values of one image.

So equal values in two images of a data set stay equal, and relative brightness is kept. Unsigned integers of n bits
range from 0 to 2**n - 1, floats from 0 to 1. Signed and 32-bit integers, and floats far beyond 1, have no known range
(thermal cameras, CT, counts): the user must give one. A given range also replaces the range of the type, for example
for 12 bits that were saved in 16. Minimum and maximum in TIFF tags and comments are ignored: writers put each image's
own values there. Legend: H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

GreyRange = tuple[float, float]
"""The value that becomes black, and the one that becomes white; values beyond them are clipped."""

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
WHITE_IS_ZERO, UNSIGNED, SIGNED = 0, 1, 2
OVERSHOOT = 1.0  # how far floats may lie outside 0 to 1 and still count as that range, as after a sharpening filter


class UnknownRange(ValueError):
    """Values whose range no rule gives."""


@dataclass(frozen=True)
class Grey:
    """The type of the pixels of a deep image."""

    kind: str
    bits: int | None
    """Of unsigned integers up to 16 bits; None for floats, and for types without a range."""
    unsigned: bool
    inverted: bool
    """0 is white: TIFF can say so, and Pillow ignores it in more than 8 bits."""
    largest: float | None = None


def grey_of(image: Image) -> Grey | None:
    """The type of the pixels of ``image``, as it was opened; None if they have 8 bits, from 0 to 255."""
    tags = getattr(image, "tag_v2", {})
    bits, kind = _first(tags.get(BITS_PER_SAMPLE, 16)), _first(tags.get(SAMPLE_FORMAT, UNSIGNED))
    if not (image.mode.startswith("I") or image.mode == "F" or (image.mode == "L" and kind == SIGNED)):
        return None
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    if image.mode == "F":
        return Grey("float", None, False, inverted)
    # Older Pillows open 16-bit PNGs as "I", which is 32-bit. All Pillows do so with a PGM, scaled to 16 bits.
    if image.mode.startswith("I;16") or (not tags and image.format in ("PNG", "PPM")):
        bits = bits if bits in (12, 16) else 16
        return Grey(f"{bits}-bit", bits, True, inverted)
    signed = " signed" if kind == SIGNED else ""
    return Grey(f"{bits if tags else 32}-bit{signed} integer", None, kind == UNSIGNED, inverted)


def to_8_bits(image: Image, grey: Grey, given: GreyRange | None) -> Image:
    """8-bit RGB, with ``info["grey"]``; ``UnknownRange`` if the type has no range and none is ``given``."""
    import numpy as np
    from PIL import Image

    value_HW = np.asarray(image)
    if grey.unsigned and value_HW.dtype == np.int32:
        value_HW = value_HW.view(np.uint32)
    if value_HW.dtype == np.uint8:  # signed bytes, which Pillow reads as unsigned
        value_HW = value_HW.view(np.int8)
    finite_HW = np.nan_to_num(value_HW, posinf=0, neginf=0) if grey.kind == "float" else value_HW
    low, high = float(finite_HW.min(initial=0)), float(finite_HW.max(initial=0))
    if given is None and grey.bits is not None:
        # exact for 8 bits that were widened to 16, by a shift or by repeating the byte
        level_HW = (value_HW >> (grey.bits - 8)).astype(np.uint8)
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
    """The deep images among some images: how many, of what types, and how much of their range they use."""

    count: int = 0
    kinds: set[str] = field(default_factory=set)
    bits: int = 32
    """The fewest bits of a type that has a range."""
    largest: float = 0
    """The largest value of those types."""

    def note(self, image: Image) -> None:
        """Count ``image`` if ``to_8_bits`` made it."""
        grey = image.info.get("grey")
        if grey:
            self.add(DeepPictures(1, {grey.kind}, grey.bits or 32, grey.largest if grey.bits else 0))

    def add(self, others: DeepPictures) -> None:
        """Add the counts of ``others``."""
        self.count, self.kinds = self.count + others.count, self.kinds | others.kinds
        self.bits, self.largest = min(self.bits, others.bits), max(self.largest, others.largest)

    def said(self, given: GreyRange | None) -> str | None:
        """For the user: how they were scaled to 8 bits, and how that could be better; None if there are none."""
        if not self.count:
            return None
        images = "image" if self.count == 1 else "images"
        what = f"{self.count:,} {images} of {', '.join(sorted(self.kinds))} grey"
        if given:
            return f"{what}, scaled from {given[0]:g} (black) to {given[1]:g} (white)"
        how = f"{what}, scaled from the full range of the type"
        bits = max(8, int(self.largest).bit_length())
        if self.largest and bits + 2 <= self.bits:
            return (
                f"{how}. They use little of it: the largest value is {self.largest:,.0f}. "
                f"To scale them from {bits} bits, give --grey-range 0,{2**bits - 1}"
            )
        return how


def _refuse_unknown(grey: Grey, low: float, high: float) -> None:
    if grey.kind != "float" or low < -OVERSHOOT or high > 1 + OVERSHOOT:
        which = "floats should lie in 0 to 1" if grey.kind == "float" else "this type has no fixed range"
        raise UnknownRange(
            f"{grey.kind} grey from {low:g} to {high:g}, but {which}: give black and white for the whole data set "
            "with --grey-range LOW,HIGH"
        )


def _first(value):
    return value[0] if isinstance(value, tuple) else value
