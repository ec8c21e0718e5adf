"""Writes a source as a ``.beton``: worker processes decode, check and encode; this process writes, in order.

FFCV's ``DatasetWriter`` is not used: it waits for ever for a worker that died, leaves its shared memory behind, shrinks
very thin images to nothing, and writes in the order in which workers finish. Here, samples are written in the source's
order, so equal sources give equal files. Legend: N samples, H height, W width, C channels.
"""

from __future__ import annotations

import io
import shutil
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastdhm.data.beton.format import ALLOCATION, DATA_OFFSET, MAX_SIDE, PAGE_BYTES, SAMPLE, BetonWriter
from fastdhm.data.images.grey import DeepPictures
from fastdhm.data.images.pool import WorkerPool, in_hand
from fastdhm.data.images.read import edges, whole_size
from fastdhm.data.sources.source import chunks, gives_arrays
from fastdhm.errors import UserError
from fastdhm.system.files import write_text
from fastdhm.system.paths import shown

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdhm.data.beton.settings import ImageSettings
    from fastdhm.data.sources.source import Source

BAD_FILES_SHOWN = 20
ESTIMATE_FROM = 16  # images


@dataclass
class Written:
    """The result of a build: bad samples with the reason, and the shortest and longest side of the others in pixels."""

    bad: dict[int, str] = field(default_factory=dict)
    min_side: int = MAX_SIDE
    max_side: int = 0
    deep: DeepPictures = field(default_factory=DeepPictures)


def write_images(
    file, source: Source, settings: ImageSettings, *, workers: int, skip_bad: bool, bar: AbstractContextManager
) -> Written:
    """Write every sample to ``file``; ``bar`` yields a function that takes the number of samples just done.

    After a bad sample, and without ``skip_bad``, nothing more is written. But the others are still decoded, so that one
    build reports all bad files.
    """
    writer, written = BetonWriter(file, len(source)), Written()
    # Fork the workers before the progress bar starts its thread.
    encoder = Encoder(source, settings)
    with WorkerPool(encoder, chunks(source), workers, label=source.label) as pool, bar as advance:
        for start, images, deep in pool.answers():
            written.deep.add(deep)
            for i, image in enumerate(images, start):
                if isinstance(image, str):
                    written.bad[i] = image
                elif skip_bad or not written.bad:
                    height, width, data = image
                    mode = "raw" if settings.stores_raw(height, width) else "jpg"
                    writer.add(mode, height, width, data, int(source.target_N[i]))
                    written.min_side = min(written.min_side, height, width)
                    written.max_side = max(written.max_side, height, width)
            advance(len(images))
    writer.finish()
    return written


@dataclass(frozen=True)
class Encoder:
    """Turns samples into what the file holds of each: ``(height, width, bytes)``, or the reason why it is bad."""

    source: Source
    settings: ImageSettings

    def __call__(self, samples: range) -> tuple[int, list[tuple[int, int, bytes] | str], DeepPictures]:
        deep = DeepPictures()
        if gives_arrays(self.source) and self._as_they_are(*self.source.size_HW):
            pixels = self.source.pixels(np.arange(samples.start, samples.stop))
            return samples.start, [(*image_HWC.shape[:2], image_HWC.tobytes()) for image_HWC in pixels], deep
        return samples.start, [self._encode_or_reason(i, deep) for i in samples], deep

    def _as_they_are(self, height: int, width: int) -> bool:
        limit = self.settings.max_resolution
        return self.settings.stores_raw(height, width) and (limit is None or max(height, width) <= limit)

    def _times_allowed(self, width: int, height: int) -> int:
        limit = self.settings.max_resolution  # twice as much is left to average, as in Pillow's thumbnails
        return 1 if limit is None else max(width, height) // (2 * limit)

    def _encode_or_reason(self, i: int, deep: DeepPictures) -> tuple[int, int, bytes] | str:
        in_hand(i)
        try:
            image = self.source.image(i, self._times_allowed)
            deep.note(image)
            return encode(image, self.settings)
        except UserError as error:
            return str(error)
        except ValueError as error:
            return f"{self.source.label(i)}: {error}"


def encode(image: Image, settings: ImageSettings) -> tuple[int, int, bytes]:
    """Height, width and bytes, after shrinking to ``max_resolution``: JPEG or plain pixels.

    A JPEG is always encoded again, even if it would fit unchanged. So every image in the file is a baseline RGB JPEG,
    whatever its camera wrote.
    """
    image = shrink(image, settings.max_resolution)
    width, height = image.size
    raw = settings.stores_raw(height, width)
    if max(width, height) > MAX_SIDE or (raw and 3 * width * height > PAGE_BYTES):
        raise ValueError(f"{width} x {height} pixels are too many to store: give a maximum resolution")
    if raw:
        return height, width, image.tobytes()
    buffer = io.BytesIO()
    try:
        image.save(buffer, "JPEG", quality=settings.quality)
    except OSError as error:  # sides above 65,500
        raise ValueError(f"{width} x {height} pixels cannot be a JPEG ({error}): give a maximum resolution") from error
    return height, width, buffer.getvalue()


def shrink(image: Image, max_resolution: int | None) -> Image:
    """Shrink the longer side to ``max_resolution``, by area averaging; both as in FFCV."""
    from PIL import Image

    whole = whole_size(image)
    if max_resolution is None or max(whole) <= max_resolution:
        return image
    ratio = max_resolution / max(whole)
    size = [max(1, int(ratio * side)) for side in whole]
    return image.resize(size, Image.Resampling.BOX, edges(image, 0, 0, *whole))


def bad_files_path(path: Path) -> Path:
    """The text file that lists the bad images, in the folder of the ``.beton``."""
    return path.with_name(f"{path.stem}-bad-files.txt")


def bad_files_error(bad: dict[int, str], total: int, listing: Path) -> UserError:
    """An error that names the first bad files; the text file ``listing`` has all of them."""
    reasons = [bad[i] for i in sorted(bad)]
    whole = ""
    with suppress(OSError, UserError):  # the disk may be full
        write_text(listing, "".join(reason + "\n" for reason in reasons))
        whole = f" (the whole list: {shown(listing)})"
    first = "".join(f"\n  {reason}" for reason in reasons[:BAD_FILES_SHOWN])
    more = f"\n  and {len(reasons) - BAD_FILES_SHOWN:,} more" if len(reasons) > BAD_FILES_SHOWN else ""
    return UserError(
        f"{len(reasons):,} of {total:,} images cannot be read{whole}:{first}{more}\n"
        "Repair or remove them, or leave them out with --skip-bad."
    )


def check_space(source: Source, settings: ImageSettings, folder: Path) -> None:
    """Refuse a build that will not fit on the disk, as estimated from a few images of all parts of the source."""
    step = max(1, len(source) // ESTIMATE_FROM)
    encoder = Encoder(source, settings)
    images = [encoder(range(i, i + 1))[1][0] for i in range(0, len(source), step)]
    sizes = [len(image[2]) for image in images if not isinstance(image, str)]
    mean_bytes = sum(sizes) / max(1, len(sizes))
    needed = int(DATA_OFFSET + len(source) * (mean_bytes + SAMPLE.itemsize + ALLOCATION.itemsize))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"not enough disk space in {shown(folder)}: about {needed:,} bytes are needed and {free:,} are free. "
            "Free some space, or choose another --data-dir."
        )
