"""The bytes of a ``.beton`` file, version 2 of FFCV's format, with one image and one label per sample.

header | field descriptors | metadata, one row per sample | image data | allocation table, one row per image

The types are FFCV's (``ffcv/types.py``). They are repeated here so that files can be built and checked without FFCV; a
test checks that both are equal. Legend: N samples, H height, W width, C channels.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from fastdhm.errors import UserError
from fastdhm.system.paths import shown

FFCV_VERSION = 2
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("", IMAGE), ("", "<i8")], align=True)  # f0: the image, f1: the label
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
FIELDS = (("image", 2), ("label", 1))  # FFCV's type numbers of RGBImageField and IntField
MODES = {"jpg": 0, "raw": 1}
MAX_SIDE = 2**16 - 1
# No image may cross into the next page, so this limits the size of an image. A page wastes less than one image.
PAGE_BYTES = 1 << 26
DATA_OFFSET = HEADER.itemsize + len(FIELDS) * FIELD.itemsize


@dataclass(frozen=True)
class Index:
    """Everything in the file but the images."""

    sample_N: np.ndarray
    allocation_N: np.ndarray
    sha256: str

    @property
    def target_N(self) -> np.ndarray:
        return self.sample_N["f1"]


class BetonWriter:
    """Appends images and labels to ``file``; ``finish`` writes the index."""

    def __init__(self, file, capacity: int):
        self._file = file
        self._sample_N = np.zeros(capacity, SAMPLE)
        self._allocation_N = np.zeros(capacity, ALLOCATION)
        self.count = 0
        self._end = DATA_OFFSET + self._sample_N.nbytes
        file.seek(self._end)

    def add(self, mode: str, height: int, width: int, data: bytes, target: int) -> None:
        assert len(data) <= PAGE_BYTES
        if self._end // PAGE_BYTES != (self._end + len(data) - 1) // PAGE_BYTES:
            self._end = (self._end // PAGE_BYTES + 1) * PAGE_BYTES
            self._file.seek(self._end)
        self._file.write(data)
        self._sample_N[self.count] = (MODES[mode], width, height, self._end), target
        self._allocation_N[self.count] = self.count, self._end, len(data)
        self._end += len(data)
        self.count += 1

    def finish(self) -> None:
        self._file.write(self._allocation_N[: self.count].tobytes())
        fields = np.zeros(len(FIELDS), FIELD)
        for field, (name, type_id) in zip(fields, FIELDS, strict=True):
            field["type_id"] = type_id
            field["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
        header = np.array((FFCV_VERSION, len(FIELDS), PAGE_BYTES, self.count, self._end), HEADER)
        self._file.seek(0)
        self._file.write(header.tobytes() + fields.tobytes() + self._sample_N[: self.count].tobytes())


def read_index(path: Path) -> Index:
    """The file's index; raises a ``UserError`` unless every pointer in it is inside the file.

    FFCV itself checks nothing: a pointer beyond the end of its memory map ends the process.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(DATA_OFFSET)
        if len(head) < DATA_OFFSET:
            raise UserError(f"{shown(path)} is cut short: {size:,} bytes are too few for its header")
        header = np.frombuffer(head, HEADER, 1)[0]
        if header["version"] != FFCV_VERSION or header["num_fields"] != len(FIELDS):
            raise UserError(
                f"{shown(path)} is not a .beton file of version {FFCV_VERSION} with an image and a label per sample"
            )
        count, table = int(header["num_samples"]), int(header["alloc_table_ptr"])
        if table + count * ALLOCATION.itemsize != size or DATA_OFFSET + count * SAMPLE.itemsize > table:
            raise UserError(f"{shown(path)} is cut short or overwritten: {size:,} bytes do not fit its own header")
        samples = file.read(count * SAMPLE.itemsize)
        file.seek(table)
        allocations = file.read()
    sha256 = hashlib.sha256(head + samples + allocations).hexdigest()
    index = Index(np.frombuffer(samples, SAMPLE), np.frombuffer(allocations, ALLOCATION), sha256)
    start_N, size_N = index.allocation_N["ptr"], index.allocation_N["size"]
    inside = (start_N < table) & (size_N <= table - np.minimum(start_N, table))
    if not (inside & (start_N == index.sample_N["f0"]["data_ptr"])).all():
        raise UserError(f"{shown(path)} is damaged: a pointer in its index is outside the file")
    return index


def read_images(path: Path, index: Index) -> np.ndarray:
    """All images, ``uint8 [N, H, W, 3]``, of a file that holds plain pixels of one size."""
    image_N = index.sample_N["f0"]
    image_NHWC = np.empty((len(image_N), int(image_N["height"][0]), int(image_N["width"][0]), 3), np.uint8)
    # Inside a page, the images follow each other, in order.
    starts = np.flatnonzero(np.diff(image_N["data_ptr"], prepend=0) != image_NHWC[0].nbytes).tolist()
    with open(path, "rb") as file:
        for start, end in pairwise([*starts, len(image_N)]):
            file.seek(int(image_N["data_ptr"][start]))
            if file.readinto(image_NHWC[start:end].data) != image_NHWC[start:end].nbytes:
                raise UserError(f"{shown(path)} is cut short")
    return image_NHWC
