"""Reads an image file of any kind as one 8-bit RGB image.

Legend: H height, W width.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastdhm.data.images.grey import GreyRange, UnknownRange, grey_of, to_8_bits
from fastdhm.data.images.signatures import what_it_is
from fastdhm.data.images.tiff import UNREAD, heed_tags, without_unused_alpha
from fastdhm.errors import UserError
from fastdhm.system.environment import positive
from fastdhm.system.paths import shown

if TYPE_CHECKING:
    from PIL.Image import Image

# Not all formats of Pillow: it would execute PostScript, for example.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
MAX_PIXELS = 1 << 29  # 2 GiB in Pillow's memory; its own limit is a third of that
ORIENTATION = 0x0112  # of EXIF; from 5 on the picture lies on its side
# its values other than 1, each with the name in Pillow of what makes the picture upright
TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
RIGHT_TO_LEFT, BOTTOM_TO_TOP = (2, 3, 6, 7), (3, 4, 7, 8)  # the file begins at the picture's right, at its bottom
PNG = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")

Shrink = Callable[[int, int], int]  # width and height to how many times smaller is enough

_silent = False


class Undecodable(UserError):
    """A file that is not an image, or a damaged one, on any machine and with any settings."""


def read_image(path: str | Path, grey_range: GreyRange | None = None, shrink: Shrink | None = None) -> Image:
    """The image at ``path`` as 8-bit RGB: the first frame, EXIF orientation applied, transparency on white.

    Deep greyscale (16-bit, 32-bit, float) is scaled to 8 bits by its type, or by ``grey_range``: see ``grey``. Its type
    stays in ``info["grey"]``. Colour profiles are not applied. A file that cannot be decoded to its end raises a
    ``UserError`` that names it. So does a file with more pixels than ``$FASTDHM_MAX_PIXELS``, by default 2**29.

    ``shrink`` takes the image's width and height and says how many times smaller is enough: a JPEG is then decoded at
    1/2, 1/4 or 1/8 of its size, in about a third of the time. :func:`whole_size` and :func:`edges` know the whole one.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise UserError(f"{shown(path)}: cannot be read: not a regular file")
        if not status.st_size:
            raise Undecodable(f"{shown(path)}: cannot be read: an empty file")
        with open(path, "rb") as file:
            return _read(file, str(path), grey_range, shrink)
    except (MemoryError, UserError):
        raise
    except UnknownRange as error:
        raise UserError(f"{shown(path)}: {error}") from error
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more for a broken file.
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{shown(path)}: cannot be read: {error.strerror}") from error
        reason = " ".join(str(error).replace(repr(str(path)), "").split()) or type(error).__name__
        raise Undecodable(f"{shown(path)}: cannot be decoded: {reason}") from error


def whole_size(image: Image) -> tuple[int, int]:
    """Width and height of an image in its file: it may have been read smaller."""
    return image.info.get("whole", image.size)


def times_smaller(image: Image) -> int:
    """By how much it was read smaller: 1, 2, 4 or 8."""
    return image.info.get("smaller", (1, 0, 0))[0]


def edges(image: Image, left: int, top: int, width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a box of the whole image, in pixels of the one that was read.

    The row and the column that a file ends with may be of a part of a pixel; a picture that was turned begins there.
    """
    times, before, above = image.info.get("smaller", (1, 0, 0))
    left, top = left + before, top + above
    return left / times, top / times, (left + width) / times, (top + height) / times


def silence_pillow() -> None:
    """Hide the messages of Pillow and libtiff in this process. Call it only in processes of fastdhm.

    The messages are about metadata, or about damage that raises an error anyway. They name no file, and every worker
    would print them.
    """
    global _silent
    _silent = True
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _to_rgb(image: Image) -> Image:
    """8-bit RGB from any 8-bit mode of Pillow. Transparent pixels are on white, as in most viewers, not on black."""
    from PIL import Image

    if image.mode == "LAB":
        return _from_lab(image)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or image.info.get("transparency") is not None
    if not has_alpha:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _read(file: BinaryIO, name: str, grey_range: GreyRange | None, shrink: Shrink | None) -> Image:
    try:
        return _decode(file, name, grey_range, shrink)
    except (UserError, UnknownRange):
        raise
    except ValueError:  # Pillow raises this also for texts and profiles beyond its limits
        file.seek(0)
        data = file.read()
        if not data.startswith(PNG):
            raise
    return _decode(io.BytesIO(_without_texts(data)), name, grey_range, shrink)


def _decode(file: BinaryIO, name: str, grey_range: GreyRange | None, shrink: Shrink | None) -> Image:
    with _open(file, name) as image:
        width, height = image.size
        limit = positive("FASTDHM_MAX_PIXELS", MAX_PIXELS, "pixels")
        if width * height > limit:
            raise UserError(
                f"{shown(name)}: {width:,} x {height:,} pixels are more than the limit of {limit:,.0f}: "
                "shrink it, or set FASTDHM_MAX_PIXELS"
            )
        smaller = {} if shrink is None else _decode_smaller(image, shrink)
        rgb = as_rgb(image, grey_range)
        rgb.info.update(smaller)
        return rgb


def _decode_smaller(image: Image, shrink: Shrink) -> dict[str, tuple[int, ...]]:
    """Have a JPEG decoded at a part of its size, if that is enough; returns what to note of it then.

    That is its ``whole`` width and height, upright, and how many times ``smaller`` it is, with how many pixels are
    missing at its left and at its top. JPEG's cosine transform does this without aliasing: what is left out are the
    high frequencies of each block.
    """
    if image.format not in ("JPEG", "MPO"):
        return {}
    orientation, (width, height) = _orientation(image), image.size
    on_its_side = orientation > 4
    whole = (height, width) if on_its_side else (width, height)
    allowed = shrink(*whole)
    if allowed < 2:
        return {}
    times = 1 << min(allowed, 8).bit_length() - 1
    drafted = image.draft(None, (max(1, width // times), max(1, height // times)))
    if drafted is None:
        return {}
    times = round(width / drafted[1][2])  # an image may be too thin for so many
    right, bottom = times * image.width - width, times * image.height - height  # what is missing in the file
    if on_its_side:
        right, bottom = bottom, right
    left, top = right * (orientation in RIGHT_TO_LEFT), bottom * (orientation in BOTTOM_TO_TOP)
    return {"whole": whole, "smaller": (times, left, top)}


def as_rgb(image: Image, grey_range: GreyRange | None = None) -> Image:
    """An image of Pillow as :func:`read_image` gives it: 8-bit RGB, upright, transparency on white."""
    _scale_key(image)
    heed_tags(image)
    grey = grey_of(image)
    _load(image)
    upright = _upright(without_unused_alpha(image))
    rgb = to_8_bits(upright, grey, grey_range) if grey else _to_rgb(upright)
    rgb.info = {"grey": rgb.info["grey"]} if grey else {}  # texts and profiles are not needed from here on
    return rgb


def _open(file: BinaryIO, name: str) -> Image:
    """``Image.open`` for ``FORMATS``, without Pillow's limit of pixels, which holds for the whole process."""
    from PIL import Image

    head, reason = file.read(256), None
    for format_name in _formats():
        factory, accept = Image.OPEN[format_name]
        answer = accept is None or accept(head[:16])
        if isinstance(answer, str):  # a known format that this Pillow was built without
            reason = answer
        elif answer:
            try:
                return _made(factory, file)
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                reason = f"{format_name}: {UNREAD.get(str(error), error)}"
    raise UserError(
        f"{shown(name)}: {f'cannot be decoded: {reason}' if reason else f'not an image: {what_it_is(head)}'}"
    )


def _made(factory: Callable, file: BinaryIO) -> Image:
    """Open without the file's name: with it Pillow maps the file, and reads TIFFs that lie on their side as noise."""
    from PIL import Image

    file.seek(0)
    try:
        return factory(file, "")
    except Image.DecompressionBombError:
        file.seek(0)
        with _without_limit():
            return factory(file, "")


@functools.cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _load(image: Image) -> None:
    """Decode without Pillow's limit of pixels, which some formats check again, and without libtiff's messages."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    large = limit is not None and image.width * image.height > limit
    with (
        _without_limit() if large else contextlib.nullcontext(),
        _without_stderr() if _silent and image.format == "TIFF" else contextlib.nullcontext(),
    ):
        image.load()


@contextlib.contextmanager
def _without_limit() -> Iterator[None]:
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _scale_key(image: Image) -> None:
    """Scale the transparent colour of a PNG from the bits of the file to the 8 bits of the pixels.

    Pillow keeps only the high byte of 16-bit channels, so only that byte of the colour can be compared.
    """
    key = image.info.get("transparency")
    tiles = getattr(image, "tile", ())  # of an image that is read from a file
    rawmode = str(tiles[0][3]) if image.format == "PNG" and tiles else ""
    if isinstance(key, int) and image.mode == "L":
        image.info["transparency"] = key * {"L;2": 85, "L;4": 17}.get(rawmode, 1)
    elif isinstance(key, tuple) and "16" in rawmode:
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _without_texts(data: bytes) -> bytes:
    """A PNG without texts and colour profile. They do not change pixels, and Pillow accepts at most 1 MiB of each."""
    kept, at = [data[:8]], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        if data[at + 4 : at + 8] not in PNG_TEXTS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _orientation(image: Image) -> int:
    """1 to 8, from EXIF or XMP; of a damaged block what can be read."""
    with contextlib.suppress(Exception):
        image.getexif()  # raises at what is damaged, but only once
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(ORIENTATION)
        return orientation if orientation in TURNS else 1
    return 1


def _upright(image: Image) -> Image:
    from PIL.Image import Transpose

    turn = TURNS.get(_orientation(image))
    return image.transpose(Transpose[turn]) if turn else image.copy()


def _from_lab(image: Image) -> Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, image.mode, "RGB").apply(image)
