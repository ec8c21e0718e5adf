"""The loader for sets that fit in memory: all images lie on the device, and a batch is one gather of them.

No thread, no worker process, nothing compiled. It holds images that need no resizing: all have one size, and a batch
has them whole, or a box of the output's size cut from each.

Each of several processes holds all images: a batch is drawn from all of them, so a process that held a share would have
to ask the others for most of its rows in every epoch.

Legend: N samples, B batch, H height, W width, C channels (1 or 3, as stored).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from fastdhm.data.beton.format import MODES, read_images, read_index
from fastdhm.data.loaders.crops import RESIZING
from fastdhm.data.loaders.loader import Batch, LoaderOptions
from fastdhm.data.sources.source import Source, gives_arrays, peeked
from fastdhm.errors import UserError
from fastdhm.system import memory
from fastdhm.system.place import place

COMFORTABLE_BYTES = 2 << 30  # more than that only if the user asks for this loader
COMFORTABLE_SHARE, LARGEST_SHARE = 0.25, 0.5  # of the device's memory, or the container's
CHUNK = 1024  # images drawn at a time


class CannotHold(UserError):
    """This loader cannot hold the images: they need resizing, or are too many."""


class ResidentLoader:
    """See ``loader.Loader``; its batches lie on ``options.device``."""

    def __init__(self, image_NHWC: torch.Tensor, target_N: np.ndarray, options: LoaderOptions) -> None:
        self.num_samples = options.count(len(image_NHWC))
        self._batches, self._options = options.num_batches(self.num_samples), options
        if options.crop != "shift":  # the box is the same for all, in every epoch
            top, left, height, width = _box((image_NHWC.shape[1], image_NHWC.shape[2]), options)
            image_NHWC = image_NHWC[:, top : top + height, left : left + width].contiguous()
        self._image_NHWC = image_NHWC.to(options.device)
        self._target_N = torch.from_numpy(target_N).to(options.device)

    def __len__(self) -> int:
        return self._batches

    @contextmanager
    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Iterator[Batch]]:
        batches = self._options.epoch_batches(len(self._target_N), epoch, start_batch)
        order_N = np.concatenate([*batches, np.empty(0, np.int64)])
        columns = [order_N[:, None]]
        if self._image_NHWC.shape[1:3] != self._options.size_HW:
            height_N, width_N = (np.full(len(order_N), side) for side in self._image_NHWC.shape[1:3])
            columns.append(self._options.boxes(height_N, width_N, order_N, epoch)[:, :2])
        # everything that the host decides, in one copy: each copy makes the host wait for the device
        plan_NX = torch.from_numpy(np.concatenate(columns, axis=1)).to(self._options.device)
        parts = plan_NX.split([len(view_B) for view_B in batches])
        yield (self._batch(view_B, *plan_BX.unbind(1)) for view_B, plan_BX in zip(batches, parts, strict=True))

    def _batch(self, view_B: np.ndarray, there_B: torch.Tensor, *corner: torch.Tensor) -> Batch:
        """A batch of whole images, or of the windows that have their top left pixel at ``corner``.

        ``there_B`` is ``view_B`` on the device.
        """
        index_B = there_B % len(self._target_N)
        image_BHWC = self._windows(index_B, *corner) if corner else self._image_NHWC.index_select(0, index_B)
        if image_BHWC.shape[3] == 1:
            image_BHWC = image_BHWC.expand(-1, -1, -1, 3).contiguous()
        return Batch(image_BHWC, self._target_N.index_select(0, index_B), there_B.clone(), view_B)

    def _windows(self, index_B: torch.Tensor, top_B: torch.Tensor, left_B: torch.Tensor) -> torch.Tensor:
        height, width = self._options.size_HW
        window_NTLCHW = self._image_NHWC.unfold(1, height, 1).unfold(2, width, 1)  # a view of every window at once
        return window_NTLCHW.permute(0, 1, 2, 4, 5, 3)[index_B, top_B, left_B]

    def close(self) -> None:
        self._image_NHWC = self._target_N = torch.empty(0)


def check_crop(options: LoaderOptions) -> None:
    """``CannotHold`` if the crop resizes whatever the images are."""
    if options.crop in RESIZING:
        raise CannotHold(f"crop '{options.crop}' resizes each image anew")


def check_source(source: Source, options: LoaderOptions) -> int:
    """The bytes that the images of ``source`` will take; in a folder it looks at a few images only.

    Raises:
        CannotHold: images that have to be resized, or are of several sizes.
    """
    sizes = {source.size_HW} if gives_arrays(source) else _some_sizes(source)
    height, width = _only_size(sizes, options) if sizes else (0, 0)
    return len(source) * height * width * getattr(source, "channels", 3)


def check_beton(path: Path, options: LoaderOptions) -> int:
    """The same for the images in a ``.beton`` file; it looks at every one."""
    image_N = read_index(path).sample_N["f0"]
    if (image_N["mode"] != MODES["raw"]).any():
        raise CannotHold("they are stored as JPEG")
    height, width = _only_size(set(zip(image_N["height"].tolist(), image_N["width"].tolist(), strict=True)), options)
    return len(image_N) * height * width * 3


def check_room(needed_bytes: int, device: torch.device, *, asked: bool) -> None:
    """``CannotHold`` if the images take too much memory; the limit is higher if the user ``asked`` for this loader."""
    if device.type == "cuda":
        memory_bytes = torch.cuda.get_device_properties(device).total_memory
    else:
        here = place()
        memory_bytes = memory.total_bytes() // (here.local_count if here else 1)
    limit = LARGEST_SHARE * memory_bytes if asked else min(COMFORTABLE_BYTES, COMFORTABLE_SHARE * memory_bytes)
    if needed_bytes > limit:
        raise CannotHold(
            f"they take {needed_bytes / 2**30:.1f} GiB of memory, where {limit / 2**30:.1f} GiB is the limit"
        )


def hold(source: Source, beton: Path | None, options: LoaderOptions) -> ResidentLoader:
    """The loader of checked images: those in ``beton`` if it is given, else those of ``source``."""
    if beton is not None:
        return ResidentLoader(torch.from_numpy(read_images(beton, read_index(beton))), source.target_N, options)
    image_NHWC = getattr(source, "image_NHWC", None)
    if image_NHWC is None:
        assert gives_arrays(source)
        parts = (range(start, min(start + CHUNK, len(source))) for start in range(0, len(source), CHUNK))
        image_NHWC = np.concatenate([source.pixels(np.array(part)) for part in parts])
    image_NHWC = np.require(image_NHWC, requirements="W")  # torch warns of what it could write to and must not
    return ResidentLoader(torch.from_numpy(image_NHWC), source.target_N, options)


def _some_sizes(source: Source) -> set[tuple[int, int]]:
    sizes = set()
    for i in peeked(source):
        try:
            width, height = source.image(i).size
            sizes.add((height, width))
        except UserError:  # a bad file, which the build will name with all others
            continue
    return sizes


def _only_size(sizes: set[tuple[int, int]], options: LoaderOptions) -> tuple[int, int]:
    if len(sizes) > 1:
        raise CannotHold("they are not all of one size")
    (size_HW,) = sizes
    if not options.keeps_pixels(size_HW):
        height, width = options.size_HW
        raise CannotHold(f"of {size_HW[0]} x {size_HW[1]} pixels, they have to be resized to {height} x {width}")
    return size_HW


def _box(size_HW: tuple[int, int], options: LoaderOptions) -> list[int]:
    height_B, width_B = (np.array([side]) for side in size_HW)
    return options.boxes(height_B, width_B, np.zeros(1, np.int64), 0)[0].tolist()
