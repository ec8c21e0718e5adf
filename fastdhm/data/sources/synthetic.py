"""Images computed from their index: a data set for tests and first steps. It needs no file and no network.

It has ten classes, or as many as are asked for: a data set to try very many with.

Legend: B batch, N samples, K classes, H height, W width, J blocks of random words.
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
SIDE, PATCHES = 32, 4  # pixels of a picture, and the patches of an identity
SHIFT = 3  # pixels by which a picture of an identity moves at most
VERSION = b"gratings 1"  # part of the digest: change it with the pictures
IDENTITIES = b"patches 1"
SAMPLE, IDENTITY = 0, 1  # what random words are of


class SyntheticSource:
    """Ten classes: a coloured grating in noise; the class sets its direction, the sample its phase, contrast and tint.

    With ``num_classes``, identities: 4 x 4 coloured patches in noise; the class sets the colours, the sample where they
    lie and their contrast.
    """

    name = "synthetic"
    note: str | None = None
    size_HW = (SIDE, SIDE)

    def __init__(self, split: str, count: int, num_classes: int | None = None):
        self.split, self.num_classes = split, num_classes
        if num_classes is None:
            self.classes = tuple(f"{180 * k // CLASSES} degrees" for k in range(CLASSES))
        else:
            self.classes = tuple(f"identity {k}" for k in range(num_classes))
        self.target_N = np.arange(count, dtype=np.int64) % len(self.classes)

    def __len__(self) -> int:
        return len(self.target_N)

    def pixels(self, index_B: np.ndarray) -> np.ndarray:
        """``uint8 [B, 32, 32, 3]``, a pure function of the split and the indices."""
        index_B = np.asarray(index_B, dtype=np.int64)
        if index_B.min(initial=0) < 0 or index_B.max(initial=-1) >= len(self):
            raise IndexError(f"sample index outside [0, {len(self)})")
        units = self._words(index_B, np.array([0]))[:, :, 0] / 2**32
        pattern = self._grating if self.num_classes is None else self._patches
        noise = self._noise(index_B)
        image = 128 + pattern(index_B, units) + 80 * (noise - 0.5)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)

    def _grating(self, index_B: np.ndarray, unit_4B: np.ndarray) -> np.ndarray:
        phase, contrast, tint, _ = unit_4B[..., None, None, None]
        y, x = np.mgrid[:SIDE, :SIDE][:, None, :, :, None]
        angle = (np.pi / CLASSES) * self.target_N[index_B][:, None, None, None]
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / 8) + 2 * np.pi * phase)
        colour = 0.5 + 0.5 * np.cos(2 * np.pi * (tint + np.arange(3) / 3))
        return (20 + 60 * contrast) * wave * colour

    def _patches(self, index_B: np.ndarray, unit_4B: np.ndarray) -> np.ndarray:
        words = self._words(self.target_N[index_B], np.arange(PATCHES * PATCHES * 3 // 16), IDENTITY)
        octets = words.transpose(1, 2, 0).astype("<u4", order="C").view(np.uint8)
        side = SIDE // PATCHES
        patch_BHWC = octets.reshape(-1, PATCHES, PATCHES, 3).repeat(side, 1).repeat(side, 2)
        shift_2B = (unit_4B[:2] * (2 * SHIFT + 1)).astype(np.int64) - SHIFT
        y_BH, x_BW = (np.arange(SIDE) + shift_2B[..., None]) % SIDE
        moved = patch_BHWC[np.arange(len(index_B))[:, None, None], y_BH[:, :, None], x_BW[:, None, :]]
        return (0.4 + 0.4 * unit_4B[2, :, None, None, None]) * (moved - 127.5)

    def _words(self, index_B: np.ndarray, block_J: np.ndarray, of: int = SAMPLE) -> np.ndarray:
        """``[4, B, J]``: blocks of four 32-bit words for each sample; train and val share those of identities alone."""
        index, block = np.broadcast_arrays(index_B[:, None], block_J[None, :])
        split = int(self.split == "train") if of == SAMPLE else 0
        return np.stack(philox4x32(index, block, split, of, 0x73796E74, 0))

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
        pictures = VERSION if self.num_classes is None else IDENTITIES + f" {self.num_classes}".encode()
        return hashlib.sha256(pictures + f" {self.split} {len(self)}".encode()).hexdigest()

    fingerprint = digest
