"""A source without its bad files, for a loader that reads the image files directly.

Legend: N samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fastdhm.data.images.pool import WorkerPool, in_hand
from fastdhm.data.sources.source import chunks, gives_arrays
from fastdhm.errors import UserError
from fastdhm.system.progress import progress_bar

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdhm.data.images.read import Shrink
    from fastdhm.data.sources.source import Source


class SubsetSource:
    """Some samples of another source, renumbered from 0."""

    def __init__(self, source: Source, kept_N: np.ndarray):
        self.name, self.split, self.classes, self.note = source.name, source.split, source.classes, source.note
        self.target_N = source.target_N[kept_N]
        self._source, self._kept_N = source, kept_N

    def __len__(self) -> int:
        return len(self._kept_N)

    def image(self, i: int, shrink: Shrink | None = None) -> Image:
        return self._source.image(int(self._kept_N[i]), shrink)

    def label(self, i: int) -> str:
        return self._source.label(int(self._kept_N[i]))

    def digest(self) -> str:
        return self._source.digest()

    def fingerprint(self) -> str | None:
        return self._source.fingerprint()


def readable_only(source: Source, workers: int, say: Callable[[str], None]) -> Source:
    """``source`` without the images that do not decode; decodes all to find them, and names the bad ones to ``say``."""
    if gives_arrays(source):
        return source
    bad: dict[int, str] = {}
    bar = progress_bar(f"check {source.name} {source.split}", len(source), enabled=True)
    with WorkerPool(_Reasons(source), chunks(source), workers, label=source.label) as pool, bar as advance:
        for samples, reasons in pool.answers():
            bad.update(reasons)
            advance(len(samples))
    if not bad:
        return source
    if len(bad) == len(source):
        raise UserError(
            f"data set '{source.name}', {source.split}: none of {len(source):,} images can be read: {bad[0]}"
        )
    for reason in bad.values():
        say(f"left out: {reason}")
    return SubsetSource(source, np.array([i for i in range(len(source)) if i not in bad], dtype=np.int64))


class _Reasons:
    def __init__(self, source: Source):
        self.source = source

    def __call__(self, samples: range) -> tuple[range, dict[int, str]]:
        reasons = {}
        for i in samples:
            in_hand(i)
            try:
                self.source.image(i)
            except UserError as error:
                reasons[i] = str(error)
        return samples, reasons
