"""The loader for where FFCV is not: a torch ``DataLoader`` over the images themselves.

Legend: N samples, B batch, H height, W width, C channels.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from fastdhm.data.loaders import Batch, LoaderOptions
from fastdhm.data.sources import Source
from fastdhm.errors import UserError


class TorchLoader:
    """See ``loaders.Loader``. Workers are processes, forked for each epoch and gone with it; 0 loads in this one."""

    def __init__(self, source: Source, options: LoaderOptions) -> None:
        self.num_samples = options.count(len(source))
        self._batches = options.num_batches(self.num_samples)
        self._options, self._samples = options, _Samples(source, options)
        # Cutting batches out of an array costs less than sending them between processes.
        self._workers = 0 if self._samples.is_plain_array else options.num_workers

    def __len__(self) -> int:
        return self._batches

    @contextmanager
    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Iterator[Batch]]:
        batches = self._options.epoch_batches(self.num_samples, epoch, start_batch)
        loader = DataLoader(
            self._samples,
            batch_size=None,  # the sampler's items are batches already: (epoch, indices)
            sampler=[(epoch, index_B) for index_B in batches],
            num_workers=min(self._workers, len(batches)),
            worker_init_fn=_ignore_interrupts,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # it seeds its workers from one, by default from torch's global generator
        )
        answers = iter(loader)
        try:
            yield _raise_errors(answers)
        finally:
            # Ends and joins the workers now; left to the garbage collector, it could be after the next epoch's have
            # started.
            if hasattr(answers, "_shutdown_workers"):
                answers._shutdown_workers()

    def close(self) -> None:
        pass


def _ignore_interrupts(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; the parent decides, and may want the batches of the step it finishes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _raise_errors(answers: Iterator) -> Iterator[Batch]:
    for answer in answers:
        if isinstance(answer, str):
            raise UserError(answer)
        yield Batch(*answer)


class _Samples(Dataset):
    """``[(epoch, index_B)]`` is that batch: images, targets, indices. It is what a worker runs."""

    def __init__(self, source: Source, options: LoaderOptions) -> None:
        self.source, self.options = source, options
        size_HW = getattr(source, "size_HW", None)
        self.is_plain_array = size_HW == options.size_HW and options.keeps_pixels(size_HW)

    def __getitem__(self, item: tuple[int, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | str:
        epoch, index_B = item
        target_B = torch.from_numpy(self.source.target_N[index_B])
        if self.is_plain_array:
            return torch.from_numpy(self.source.pixels(index_B)), target_B, torch.from_numpy(index_B)
        try:
            images = [np.asarray(self.source.image(int(i))) for i in index_B]
        except UserError as error:
            # An exception would arrive wrapped in a worker's traceback; the reason alone is what the user needs.
            return str(error)
        height_B, width_B = (np.array([image.shape[axis] for image in images]) for axis in (0, 1))
        box_B4 = self.options.boxes(height_B, width_B, index_B, epoch)
        image_BHWC = np.stack([self._cut(*pair) for pair in zip(images, box_B4.tolist(), strict=True)])
        return torch.from_numpy(image_BHWC), target_B, torch.from_numpy(index_B)

    def _cut(self, image_HWC: np.ndarray, box: list[int]) -> np.ndarray:
        top, left, height, width = box
        image_HWC = image_HWC[top : top + height, left : left + width]
        if (height, width) == self.options.size_HW:
            return image_HWC
        image_CHW = torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)
        return functional.resize(image_CHW, list(self.options.size_HW), antialias=True).permute(1, 2, 0).numpy()
