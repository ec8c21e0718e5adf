"""The loader for where FFCV is not: images are decoded by Pillow and resized by torch, in worker processes.

Legend: N samples, B batch, H height, W width, C channels.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.transforms.v2 import functional

from fastdhm.data.images.pool import WorkerPool, in_hand, reading
from fastdhm.data.images.read import Shrink, Undecodable, edges, times_smaller, whole_size
from fastdhm.data.loaders.loader import Batch, LoaderOptions
from fastdhm.data.sources.source import Source, gives_arrays
from fastdhm.errors import UserError
from fastdhm.system.waiting import waited_for

if TYPE_CHECKING:
    from PIL.Image import Image

SPARE = 2  # a crop of an image that is decoded smaller has so many times the output's sides, as in Pillow's thumbnails


class TorchLoader:
    """See ``loader.Loader``. Workers are processes, forked for each epoch and gone with it; 0 loads in this one."""

    def __init__(self, source: Source, options: LoaderOptions) -> None:
        self.num_samples = options.count(len(source))
        self._batches = options.num_batches(self.num_samples)
        self._options, self._source = options, source
        size_HW = getattr(source, "size_HW", None)
        whole = size_HW == options.size_HW and options.keeps_pixels(size_HW)
        self._arrays = source if whole and gives_arrays(source) else None

    def __len__(self) -> int:
        return self._batches

    @contextlib.contextmanager
    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Iterator[Batch]]:
        batches = self._options.epoch_batches(len(self._source), epoch, start_batch)
        cut = _Cut(self._source, self._options, epoch)
        if arrays := self._arrays:  # to cut batches out of an array costs less than to send them between processes
            yield (self._batch(view_B, arrays.pixels(view_B % len(arrays))) for view_B in batches)
        elif not self._options.num_workers or not batches:
            images = waited_for(cut, batches, "data", lambda: f"this process is {reading(self._source.label)}")
            with contextlib.closing(images):
                yield (self._batch(*pair) for pair in zip(batches, images, strict=True))
        else:
            room_bytes = max(map(len, batches)) * cut.image_bytes
            workers = self._options.num_workers
            with WorkerPool(cut, batches, workers, label=self._source.label, room_bytes=room_bytes) as pool:
                yield (
                    self._batch(view_B, cut.array(view_B, room))
                    for view_B, (_, room) in zip(batches, pool.answers(), strict=True)
                )

    def _batch(self, view_B: np.ndarray, image_BHWC: np.ndarray) -> Batch:
        """A batch in memory of its own, page-locked where there is a GPU to copy it to."""
        own_BHWC = torch.empty(image_BHWC.shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        np.copyto(own_BHWC.numpy(), image_BHWC)
        target_B = self._source.target_N[view_B % len(self._source)]
        return Batch(own_BHWC, torch.from_numpy(target_B), torch.from_numpy(view_B))

    def close(self) -> None:
        pass


class _Cut:
    """``cut(view_B)`` is the images of these views, cropped and resized; it is what a worker runs."""

    def __init__(self, source: Source, options: LoaderOptions, epoch: int) -> None:
        self.source, self.options, self.epoch = source, options, epoch
        height, width = options.size_HW
        self.image_bytes = height * width * 3

    def array(self, view_B: np.ndarray, room: memoryview) -> np.ndarray:
        """The images that a worker wrote, or is to write, to ``room``."""
        array = np.frombuffer(room, np.uint8, len(view_B) * self.image_bytes)
        return array.reshape(len(view_B), *self.options.size_HW, 3)

    def __call__(self, view_B: np.ndarray, room: memoryview | None = None) -> np.ndarray | None:
        images = []
        for view in view_B.tolist():
            i = view % len(self.source)
            in_hand(i)
            try:
                images.append(self.source.image(i, self._shrink(view)))
            except Undecodable as error:
                raise UserError(f"{error}. Remove it, or leave such files out with --skip-bad") from error
        width_B, height_B = np.array([whole_size(image) for image in images]).T
        box_B4 = self.options.boxes(height_B, width_B, view_B, self.epoch)
        cut = [cut_out(*pair, self.options.size_HW) for pair in zip(images, box_B4.tolist(), strict=True)]
        if room is None:
            return np.stack(cut)
        np.stack(cut, out=self.array(view_B, room))
        return None  # nothing to send, the images are there

    def _shrink(self, view: int) -> Shrink:
        boxed = functools.partial(self.options.box, view=view, epoch=self.epoch)
        return functools.partial(times_allowed, size_HW=self.options.size_HW, boxed=boxed)


def times_allowed(width: int, height: int, size_HW: tuple[int, int], boxed: Callable[[int, int], list[int]]) -> int:
    """How many times smaller an image may be read, so that its box still has ``SPARE`` times the sides of ``size_HW``.

    So much is left to the resizing that the result hardly differs. ``boxed`` gives the box for a width and a height.
    """
    least_height, least_width = (SPARE * side for side in size_HW)
    if height < 2 * least_height or width < 2 * least_width:  # most images: that is plain without a box
        return 1
    _, _, box_height, box_width = boxed(width, height)
    return min(box_height // least_height, box_width // least_width)


def cut_out(image: Image, box: list[int], size_HW: tuple[int, int]) -> np.ndarray:
    """The ``box`` (top, left, height, width) of an image, resized to ``size_HW``; it counts pixels of the whole one."""
    from PIL.Image import Resampling

    top, left, height, width = box
    if times_smaller(image) > 1:  # the box lies between its pixels, which torch cannot cut
        return np.asarray(image.resize(size_HW[::-1], Resampling.BILINEAR, edges(image, left, top, width, height)))
    image_HWC = np.asarray(image)[top : top + height, left : left + width]
    if (height, width) == size_HW:
        return image_HWC
    image_CHW = torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)
    return functional.resize(image_CHW, list(size_HW), antialias=True).permute(1, 2, 0).numpy()
