"""One image file in, one 8-bit RGB image out, whatever the file held.

Legend: H height, W width.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from fastdhm.data.walk import printable
from fastdhm.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


def read_image(path: str | Path) -> Image:
    """The image at ``path`` as 8-bit RGB, upright: first frame, EXIF orientation applied, transparency laid on white.

    Deep greyscale (16-bit, 32-bit, float) is scaled to 8 bits. A file that cannot be decoded to its end raises a
    ``UserError`` that names it.
    """
    from PIL import Image

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise OSError("not a regular file")
        with Image.open(path) as image:
            image.load()
            return to_rgb(_upright(image))
    except MemoryError:
        raise
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more for a broken file.
    except Exception as error:
        reason = " ".join(str(error).replace(repr(str(path)), "").split()) or type(error).__name__
        raise UserError(f"{printable(path)}: not a complete image: {reason}") from error


def to_rgb(image: Image) -> Image:
    """8-bit RGB from any Pillow mode. White, not black, lies under transparent pixels: it is what most viewers show."""
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if not has_alpha:
        return image.convert("RGB")
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels, which have already been decoded
        return image


def _from_deep_grey(image: Image) -> Image:
    """Pillow clips these modes at 255 when it converts them; keep the high byte instead."""
    import numpy as np
    from PIL import Image

    grey_HW = np.asarray(image)
    if image.mode == "F":
        grey_HW = np.nan_to_num(grey_HW) * (255 if np.nanmax(grey_HW, initial=0) <= 1 else 1)
    elif grey_HW.max(initial=0) > 255:
        grey_HW = grey_HW.astype(np.int64) >> 8
    return Image.fromarray(np.clip(grey_HW, 0, 255).astype(np.uint8)).convert("RGB")
