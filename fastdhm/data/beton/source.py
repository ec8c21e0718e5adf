"""The images in a ``.beton`` file, one at a time; a loader reads the same images in batches.

Legend: N samples.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from fastdhm.data.beton.files import check
from fastdhm.data.beton.format import MODES, read_index

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdhm.data.images.read import Shrink


class BetonSource:
    """A source that reads from the file. It is used where the image files are gone, or are not all in the file."""

    note: str | None = None

    def __init__(self, path: Path):
        self._path, self._manifest, self._index = Path(path), check(path), read_index(path)
        self.name, self.split, self.classes = self._manifest.dataset, self._manifest.split, self._manifest.classes
        self.target_N = self._index.target_N.astype("int64")

    def __len__(self) -> int:
        return len(self.target_N)

    def image(self, i: int, shrink: Shrink | None = None) -> Image:
        from PIL import Image

        stored, place = self._index.sample_N["f0"][i], self._index.allocation_N[i]
        with open(self._path, "rb") as file:
            file.seek(int(place["ptr"]))
            data = file.read(int(place["size"]))
        if stored["mode"] == MODES["raw"]:
            return Image.frombytes("RGB", (int(stored["width"]), int(stored["height"])), data)
        return Image.open(io.BytesIO(data), formats=["JPEG"]).convert("RGB")

    def label(self, i: int) -> str:
        return f"{self.name}/{self.split}[{i}]"

    def digest(self) -> str:
        return self._manifest.source_digest

    def fingerprint(self) -> str | None:
        return self._manifest.fingerprint
