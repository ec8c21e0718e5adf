"""What happens to a batch on the device: pad and crop, flip, augment, normalise.

Legend: B batch, H height, W width, C channels, X = W C.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fastdhm.data.augment.augmentation import Augmentation
from fastdhm.data.augment.erase import erase
from fastdhm.ops.philox import STREAM_AUGMENT, draw

AT_ONCE = 1 << 18  # samples of an epoch that are drawn at once: this takes some 30 MB of memory


def shrink(image_BCHW: torch.Tensor, side: int) -> torch.Tensor:
    """Images shrunk by area averaging until their shorter side is ``side`` pixels; unchanged if it already is.

    The aspect ratio stays: images of 256 x 128 shrunk to 96 become 192 x 96.
    """
    height, width = image_BCHW.shape[-2:]
    short = min(height, width)
    if short == side:
        return image_BCHW
    size = [(2 * length * side + short) // (2 * short) for length in (height, width)]  # to the nearest whole pixel
    return F.interpolate(image_BCHW, size, mode="area")


class DeviceTransform(nn.Module):
    """``uint8`` BHWC images to normalised channels-last BCHW: ``(image / 255 - mean) / std``.

    With ``pad``, each image is padded by that many black pixels, and a window of the old size is cut out at random.
    With ``flip``, each image is mirrored with probability 1/2. ``augmentation`` says what is done after that. The draws
    are a pure function of (seed, epoch, view): no global generator is used, and the host does not wait. A view is a
    sample's index, or stands for another copy of it. For evaluation, turn all off.

    Crops and flips are drawn on the images' device. A draw takes some 220 small operations, for a batch of any size:
    half a millisecond on a CPU, and as many launches on a GPU. So :meth:`draw_epoch` makes the draws of all views at
    once, and a batch looks up its own. ``augmentation`` is drawn on the host, which has to know what to launch.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        pad: int = 0,
        flip: bool = False,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if pad < 0:
            raise ValueError(f"pad is {pad}: must be 0 pixels or more")
        if min(std) <= 0:
            raise ValueError(f"std is {tuple(std)}: must be above 0 in every channel")
        self.pad, self.flip, self.augmentation, self.seed = pad, flip, augmentation, seed
        self._drawn: tuple[int, torch.Tensor] | None = None  # an epoch, and the draws of all views in it
        mean_C, std_C = (torch.as_tensor(values, dtype=torch.float64) for values in (mean, std))
        self.gain_C: torch.Tensor
        self.bias_C: torch.Tensor
        self.register_buffer("gain_C", (1 / (255 * std_C)).float(), persistent=False)
        self.register_buffer("bias_C", (-mean_C / std_C).float(), persistent=False)

    @torch.no_grad()
    def draw_epoch(self, num_views: int, epoch: int) -> None:
        """Make the draws of crops and flips of views 0, ..., ``num_views`` - 1 for the batches of ``epoch``."""
        if self.pad or self.flip:
            index_N = torch.arange(num_views, device=self.gain_C.device)
            self._drawn = epoch, torch.cat([self._draw(part, epoch) for part in index_N.split(AT_ONCE)])

    @torch.no_grad()
    def forward(
        self,
        image_BHWC: torch.Tensor,
        index_B: torch.Tensor,
        epoch: int | torch.Tensor,
        dtype: torch.dtype = torch.float32,
        *,
        view_B: np.ndarray | None = None,
    ) -> torch.Tensor:
        """``index_B`` are the views; it and a tensor ``epoch`` are on the images' device.

        An ``augmentation`` needs them as the host's ``view_B``, and ``epoch`` as a number.
        """
        boxes = {}
        if self.pad or self.flip:
            image_BHWC = self._crop_and_flip(image_BHWC, index_B, epoch)
        if self.augmentation is not None:
            from fastdhm.data.augment.operations import apply_rounds  # loads torchvision, which takes a second

            assert view_B is not None and isinstance(epoch, int)
            size_HW = image_BHWC.shape[1], image_BHWC.shape[2]
            image_BHWC = apply_rounds(image_BHWC, self.augmentation.rounds(view_B, epoch, size_HW))
            boxes = self.augmentation.boxes(view_B, epoch, size_HW)
        # Whole rows at once: vectors of only three channels are five times slower on a CPU. In place: the page faults
        # of a second buffer cost more than the arithmetic.
        W = image_BHWC.shape[2]
        row_BHX = image_BHWC.float().flatten(2).mul_(self.gain_C.repeat(W)).add_(self.bias_C.repeat(W))
        image_BCHW = row_BHX.to(dtype).view(image_BHWC.shape).permute(0, 3, 1, 2)
        erase(image_BCHW, boxes)
        return image_BCHW

    def _draw(self, index_B: torch.Tensor, epoch: int | torch.Tensor) -> torch.Tensor:
        """For each sample: first row and column of its window, and whether it is mirrored, ``int64 [B, 3]``."""
        top_B, left_B, mirror_B, _ = draw(index_B, epoch, STREAM_AUGMENT, self.seed)
        offsets = 2 * self.pad + 1
        return torch.stack([top_B * offsets >> 32, left_B * offsets >> 32, mirror_B >> 31], 1)

    def _crop_and_flip(
        self, image_BHWC: torch.Tensor, index_B: torch.Tensor, epoch: int | torch.Tensor
    ) -> torch.Tensor:
        """Crop and flip in one gather of whole pixels: the address of a pixel is linear in its row and its column."""
        B, H, W, C = image_BHWC.shape
        device = image_BHWC.device
        if self._drawn is not None and isinstance(epoch, int) and self._drawn[0] == epoch:
            drawn_B3 = self._drawn[1].index_select(0, index_B)
        else:
            drawn_B3 = self._draw(index_B, epoch)
        top_B1, left_B1, mirror_B1 = drawn_B3.split(1, 1)
        column_BW = torch.arange(W, device=device).expand(B, W)
        if self.flip:
            column_BW = torch.where(mirror_B1.bool(), W - 1 - column_BW, column_BW)
        row_BH = torch.arange(H, device=device).expand(B, H)
        if self.pad:
            row_BH, column_BW = row_BH + top_B1, column_BW + left_B1
            image_BHWC = F.pad(image_BHWC, (0, 0, self.pad, self.pad, self.pad, self.pad))
        padded_H, padded_W = image_BHWC.shape[1:3]
        first_B = torch.arange(B, device=device)[:, None] * padded_H
        address = torch.int32 if B * padded_H * padded_W < 2**31 else torch.int64
        line_BH = ((first_B + row_BH) * padded_W).to(address)
        pixel_BHW = line_BH[:, :, None] + column_BW.to(address)[:, None, :]
        return image_BHWC.reshape(-1, C).index_select(0, pixel_BHW.flatten()).view(B, H, W, C)
