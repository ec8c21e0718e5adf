"""Reads a ``.beton`` back: its checksum, and every image in it.

Legend: N samples.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from fastdhm.data.beton.format import MODES, Index
from fastdhm.data.images.pool import WorkerPool, in_hand

CHUNK = 64  # images that a worker gets at a time


def find_damage(path: Path, index: Index, workers: int, bar: AbstractContextManager) -> list[str]:
    """What is wrong, for each image that does not decode to the size in the index."""
    damaged = []
    count = len(index.sample_N)
    chunks = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    label = f"sample {{}} of {path}".format
    with WorkerPool(_Checker(path, index), chunks, workers, label=label) as pool, bar as advance:
        for checked, messages in pool.answers():
            damaged += messages
            advance(checked)
    return damaged


@dataclass(frozen=True)
class _Checker:
    path: Path
    index: Index

    def __call__(self, samples: range) -> tuple[int, list[str]]:
        with open(self.path, "rb") as file:
            messages = [self._check(file, i) for i in samples]
        return len(samples), [f"sample {i}: {text}" for i, text in zip(samples, messages, strict=True) if text]

    def _check(self, file, i: int) -> str | None:
        in_hand(i)
        image, allocation = self.index.sample_N["f0"][i], self.index.allocation_N[i]
        size = int(image["width"]), int(image["height"])
        file.seek(int(allocation["ptr"]))
        data = file.read(int(allocation["size"]))
        if image["mode"] == MODES["raw"]:
            return None if len(data) == 3 * size[0] * size[1] else f"{len(data)} bytes are not {size} pixels"
        return _jpeg_fault(data, size)


def _jpeg_fault(data: bytes, size: tuple[int, int]) -> str | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            image.load()
            same = image.size == size and image.mode == "RGB"
            return None if same else f"{image.mode} of {image.size} instead of RGB of {size}"
    except Exception as error:  # see images.read_image: a decoder can raise anything
        return str(error) or type(error).__name__
