"""Tags of TIFF and BMP files that Pillow ignores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

BITS_PER_SAMPLE, COLOUR_MAP, EXTRA_SAMPLES, PLANAR = 258, 320, 338, 284  # TIFF tags
SEPARATE = 2
UNREAD = {"unknown pixel mode": "its bits or channels cannot be read: convert it to 8 bits"}


def heed_tags(image: Image) -> None:
    """Change how ``image``, which is opened but not yet decoded, will be decoded.

    Uncompressed planes of 16 bits a channel must not be read as 8 bits. The values of a colour map go up to 65,535, but
    some writers go up to 255 only: libtiff, and all that is built on it, assumes that if no value is larger.
    """
    from PIL.TiffImagePlugin import TiffImageFile

    if not isinstance(image, TiffImageFile):
        return
    tags = image.tag_v2
    if tags.get(PLANAR) == SEPARATE and set(tags.get(BITS_PER_SAMPLE, ())) == {16}:
        image.tile = [_of_16_bits(tile, image.mode, ";16B" if tags.prefix == b"MM" else ";16L") for tile in image.tile]
    colours = tags.get(COLOUR_MAP, ())
    if image.mode in ("P", "PA") and 0 < max(colours, default=0) < 256:
        from PIL import ImagePalette

        image.palette = ImagePalette.raw("RGB;L", bytes(colours))


def without_unused_alpha(image: Image) -> Image:
    """``image`` without a fourth channel of zeros, unless the file says that it is transparency; browsers do the same.

    In BMP files it is often padding. In TIFF files that do not describe their extra channel it can be anything.
    """
    said = image.format != "BMP" and (image.format != "TIFF" or EXTRA_SAMPLES in getattr(image, "tag_v2", ()))
    if said or image.mode != "RGBA" or image.getchannel("A").getextrema() != (0, 0):
        return image
    return image.convert("RGB")


def _of_16_bits(tile: Any, mode: str, bits: str) -> Any:
    codec, box, offset, arguments = tile
    if codec != "raw":  # libtiff's own
        return tile
    plane = mode if mode.startswith("I") else arguments[0] + bits
    return getattr(type(tile), "_make", tuple)((codec, box, offset, (plane, *arguments[1:])))
