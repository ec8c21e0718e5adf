"""Turns a source into the bytes of a ``.beton``: decode, check and encode in worker processes, write in order here.

FFCV's ``DatasetWriter`` is not used: it waits for ever for a worker that died, leaves its shared memory behind, shrinks
very thin images to nothing, and writes in the order in which workers finish. Written in the source's order, equal
sources give equal files. Legend: N samples, H height, W width, C channels.
"""

from __future__ import annotations

import io
import shutil
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fastdhm.data.beton.format import ALLOCATION, DATA_OFFSET, MAX_SIDE, PAGE_BYTES, SAMPLE, BetonWriter
from fastdhm.data.images.grey import DeepPictures
from fastdhm.data.images.pool import WorkerPool, in_hand
from fastdhm.data.sources.source import chunks
from fastdhm.errors import UserError
from fastdhm.system.files import write_text

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdhm.data.beton.settings import ImageSettings
    from fastdhm.data.sources.source import Source

BAD_FILES_SHOWN = 20
ESTIMATE_FROM = 16  # images


@dataclass
class Written:
    """What became of the samples: the bad ones with the reason, and the extremes of the others' sides in pixels."""

    bad: dict[int, str] = field(default_factory=dict)
    min_side: int = MAX_SIDE
    max_side: int = 0
    deep: DeepPictures = field(default_factory=DeepPictures)


def write_images(
    file, source: Source, settings: ImageSettings, *, workers: int, skip_bad: bool, bar: AbstractContextManager
) -> Written:
    """Write every sample to ``file``; ``bar`` gives the function to call with the number of samples as they pass.

    After a bad one, and without ``skip_bad``, nothing more is written but all the others are still decoded: the user is
    told of every bad file at once, not of one a build.
    """
    writer, written = BetonWriter(file, len(source)), Written()
    # The workers are forked before the bar starts its thread.
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
    """Samples to what the file holds of them, ``(height, width, bytes)``, or to the reason why one is bad."""

    source: Source
    settings: ImageSettings

    def __call__(self, samples: range) -> tuple[int, list[tuple[int, int, bytes] | str], DeepPictures]:
        deep = DeepPictures()
        if self._as_they_are():
            pixels = self.source.pixels(samples)
            return samples.start, [(*image_HWC.shape[:2], image_HWC.tobytes()) for image_HWC in pixels], deep
        return samples.start, [self._encode_or_reason(i, deep) for i in samples], deep

    def _as_they_are(self) -> bool:
        limit = self.settings.max_resolution
        in_memory = hasattr(self.source, "pixels") and self.settings.stores_raw(*self.source.size_HW)
        return in_memory and (limit is None or max(self.source.size_HW) <= limit)

    def _encode_or_reason(self, i: int, deep: DeepPictures) -> tuple[int, int, bytes] | str:
        in_hand(i)
        try:
            image = self.source.image(i)
            deep.note(image)
            return encode(image, self.settings)
        except UserError as error:
            return str(error)
        except ValueError as error:
            return f"{self.source.label(i)}: {error}"


def encode(image: Image, settings: ImageSettings) -> tuple[int, int, bytes]:
    """Height, width and bytes, after shrinking to ``max_resolution``: JPEG or plain pixels.

    A JPEG is encoded anew even if it would fit as it is: so every image in the file is a baseline RGB JPEG, whatever
    its camera wrote.
    """
    image = shrink(image, settings.max_resolution)
    width, height = image.size
    raw = settings.stores_raw(height, width)
    if max(width, height) > MAX_SIDE or (raw and 3 * width * height > PAGE_BYTES):
        raise ValueError(f"{width} x {height} pixels are too many to store; give a maximum resolution")
    if raw:
        return height, width, image.tobytes()
    buffer = io.BytesIO()
    try:
        image.save(buffer, "JPEG", quality=settings.quality)
    except OSError as error:  # sides above 65,500
        raise ValueError(f"{width} x {height} pixels cannot be a JPEG ({error}); give a maximum resolution") from error
    return height, width, buffer.getvalue()


def shrink(image: Image, max_resolution: int | None) -> Image:
    """Down to ``max_resolution`` on the longer side, FFCV's meaning of the word, by area averaging as FFCV does."""
    from PIL import Image

    if max_resolution is None or max(image.size) <= max_resolution:
        return image
    ratio = max_resolution / max(image.size)
    size = [max(1, int(ratio * side)) for side in image.size]
    return image.resize(size, Image.Resampling.BOX)


def bad_files_path(path: Path) -> Path:
    """The text file that lists the bad images, beside where the ``.beton`` would be."""
    return path.with_name(f"{path.stem}-bad-files.txt")


def bad_files_error(bad: dict[int, str], total: int, listing: Path) -> UserError:
    """Names the bad files: the first ones in the message, all of them in the text file ``listing``."""
    reasons = [bad[i] for i in sorted(bad)]
    whole = ""
    with suppress(OSError, UserError):  # the disk may be full, too
        write_text(listing, "".join(reason + "\n" for reason in reasons))
        whole = f" (the whole list: {listing})"
    shown = "".join(f"\n  {reason}" for reason in reasons[:BAD_FILES_SHOWN])
    more = f"\n  and {len(reasons) - BAD_FILES_SHOWN:,} more" if len(reasons) > BAD_FILES_SHOWN else ""
    return UserError(
        f"{len(reasons):,} of {total:,} images cannot be read{whole}:{shown}{more}\n"
        "Repair or remove them, or leave them out with --skip-bad."
    )


def check_space(source: Source, settings: ImageSettings, folder: Path) -> None:
    """Refuse to begin what cannot fit, judged from a few images spread over the source."""
    step = max(1, len(source) // ESTIMATE_FROM)
    encoder = Encoder(source, settings)
    images = [encoder(range(i, i + 1))[1][0] for i in range(0, len(source), step)]
    sizes = [len(image[2]) for image in images if not isinstance(image, str)]
    mean_bytes = sum(sizes) / max(1, len(sizes))
    needed = int(DATA_OFFSET + len(source) * (mean_bytes + SAMPLE.itemsize + ALLOCATION.itemsize))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"not enough disk space in {folder}: about {needed:,} bytes are needed and {free:,} are free. "
            "Make room, or choose another --data-dir."
        )
