"""Images computed from their index: a data set for tests and first steps. It needs no file and no network.

Legend: B batch, N samples, H height, W width, J blocks of random words.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from fastdhm.ops.philox import philox4x32

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdhm.data.images.read import Shrink

CLASSES = 10
SIDE = 32
VERSION = b"gratings 1"  # part of the digest: change it with the pictures


class SyntheticSource:
    """A coloured grating in noise; the class sets its direction, the sample its phase, contrast and tint."""

    name = "synthetic"
    note: str | None = None
    size_HW = (SIDE, SIDE)

    def __init__(self, split: str, count: int):
        self.split = split
        self.classes = tuple(f"{180 * k // CLASSES} degrees" for k in range(CLASSES))
        self.target_N = np.arange(count, dtype=np.int64) % CLASSES

    def __len__(self) -> int:
        return len(self.target_N)

    def pixels(self, index_B: np.ndarray) -> np.ndarray:
        """``uint8 [B, 32, 32, 3]``, a pure function of the split and the indices."""
        index_B = np.asarray(index_B, dtype=np.int64)
        if index_B.min(initial=0) < 0 or index_B.max(initial=-1) >= len(self):
            raise IndexError(f"sample index outside [0, {len(self)})")
        units = (word[:, None, None, None] / 2**32 for word in self._words(index_B, np.array([0]))[:, :, 0])
        phase, contrast, tint, _ = units
        y, x = np.mgrid[:SIDE, :SIDE][:, None, :, :, None]
        angle = (np.pi / CLASSES) * self.target_N[index_B][:, None, None, None]
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / 8) + 2 * np.pi * phase)
        colour = 0.5 + 0.5 * np.cos(2 * np.pi * (tint + np.arange(3) / 3))
        noise = self._noise(index_B)
        image = 128 + (20 + 60 * contrast) * wave * colour + 80 * (noise - 0.5)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)

    def _words(self, index_B: np.ndarray, block_J: np.ndarray) -> np.ndarray:
        """``[4, B, J]``: blocks of four 32-bit words for each sample; train and val never share one."""
        index, block = np.broadcast_arrays(index_B[:, None], block_J[None, :])
        return np.stack(philox4x32(index, block, int(self.split == "train"), 0, 0x73796E74, 0))

    def _noise(self, index_B: np.ndarray) -> np.ndarray:
        """``[B, H, W, 3]`` in [0, 1), from the bytes of 192 blocks a sample."""
        words = self._words(index_B, np.arange(1, 1 + SIDE * SIDE * 3 // 16))
        octets = words.transpose(1, 2, 0).astype("<u4", order="C").view(np.uint8)
        return octets.reshape(-1, SIDE, SIDE, 3) / 256

    def image(self, i: int, shrink: Shrink | None = None) -> Image:
        from PIL import Image

        return Image.fromarray(self.pixels(np.array([i]))[0])

    def label(self, i: int) -> str:
        return f"synthetic/{self.split}[{i}]"

    def digest(self) -> str:
        return hashlib.sha256(VERSION + f" {self.split} {len(self)}".encode()).hexdigest()

    fingerprint = digest
