"""What TIFF and BMP files say in their tags and Pillow does not heed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

BITS_PER_SAMPLE, COLOUR_MAP, EXTRA_SAMPLES, PLANAR = 258, 320, 338, 284  # TIFF tags
SEPARATE = 2
UNREAD = {"unknown pixel mode": "its bits or channels are of a kind that is not read: convert it to 8 bits"}


def heed_tags(image: Image) -> None:
    """Change how ``image``, which was opened and not decoded, is going to be decoded.

    Uncompressed planes of 16 bits a channel are not to be read as if they had 8. A colour map counts to 65,535, but for
    writers that count to 255: libtiff takes one without a larger value for theirs, and so does everything built on it.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return
    if tags.get(PLANAR) == SEPARATE and set(tags.get(BITS_PER_SAMPLE, ())) == {16}:
        image.tile = [_of_16_bits(tile, image.mode, ";16B" if tags.prefix == b"MM" else ";16L") for tile in image.tile]
    colours = tags.get(COLOUR_MAP, ())
    if image.mode in ("P", "PA") and 0 < max(colours, default=0) < 256:
        from PIL import ImagePalette

        image.palette = ImagePalette.raw("RGB;L", bytes(colours))


def without_unused_alpha(image: Image) -> Image:
    """``image`` without a fourth channel of zeros that its file does not say to be transparency, as browsers take it.

    In BMP files it is often padding, and in TIFF files without a word on their extra channel anything.
    """
    said = image.format != "BMP" and (image.format != "TIFF" or EXTRA_SAMPLES in image.tag_v2)
    if said or image.mode != "RGBA" or image.getextrema()[3] != (0, 0):
        return image
    return image.convert("RGB")


def _of_16_bits(tile: tuple, mode: str, bits: str) -> tuple:
    codec, box, offset, arguments = tile
    if codec != "raw":  # libtiff's own
        return tile
    plane = mode if mode.startswith("I") else arguments[0] + bits
    return getattr(type(tile), "_make", tuple)((codec, box, offset, (plane, *arguments[1:])))
