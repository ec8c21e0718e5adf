"""From a run to answers: a network, the preparation of its images, and its classes.

Legend: B batch, H height, W width, C channels, K classes, T of them that are taken.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdhm.config import TrainConfig
from fastdhm.data.augment.transforms import DeviceTransform, shrink
from fastdhm.data.images.read import as_rgb, read_image, whole_size
from fastdhm.data.loaders.crops import height_width
from fastdhm.data.loaders.torch_loader import cut_out, times_allowed
from fastdhm.data.sources.source import is_reid
from fastdhm.engine.build import Trained, data_options, load_trained
from fastdhm.engine.device import autocast, pick_device, pick_own_precision, placed
from fastdhm.engine.saved.record import to_host
from fastdhm.errors import UserError
from fastdhm.system.paths import expanded


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image, the likeliest first, and their probabilities."""

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


class Transform:
    """One image as ``fastdhm eval`` prepares it: read, cut, resized, normalised to ``float32 [C, H, W]``.

    An image is a path, an image of Pillow, an array (``uint8``, [H, W] or [H, W, C]) or a tensor ([C, H, W]; ``uint8``,
    or floating point from 0 to 1). A large JPEG is decoded smaller where it is read from its path, as ``eval`` does.
    """

    def __init__(self, config: TrainConfig):
        self._options, self._grey_range = data_options(config).for_judging(), config.grey_range
        self.size_HW, self._box = self._options.size_HW, functools.partial(self._options.box, view=0, epoch=0)
        self.normalise = DeviceTransform(config.mean, config.std)
        self._side = min(height_width(config.image_size))

    def __call__(self, image: Any) -> Tensor:
        return self.finish(torch.from_numpy(self.pixels(image)[None].copy()))[0]

    def pixels(self, image: Any) -> np.ndarray:
        """The image cut and resized, ``uint8 [H, W, C]``."""
        opened = self._opened(image)
        return cut_out(opened, self._box(*whole_size(opened)), self.size_HW)

    def finish(self, image_BHWC: Tensor) -> Tensor:
        """What is done on the device: ``uint8 [B, H, W, C]`` to normalised ``float32 [B, C, H, W]``."""
        index_B = torch.zeros(len(image_BHWC), dtype=torch.int64, device=image_BHWC.device)
        return shrink(self.normalise.to(image_BHWC.device)(image_BHWC, index_B, 0), self._side)

    def _opened(self, image: Any) -> Any:
        from PIL import Image

        if isinstance(image, (str, Path)):
            smaller = functools.partial(times_allowed, size_HW=self.size_HW, boxed=self._box)
            return read_image(expanded(image), self._grey_range, smaller)
        if isinstance(image, Image.Image):
            return as_rgb(image, self._grey_range)
        if isinstance(image, Tensor):
            image = _bytes_of(image)
        if not isinstance(image, np.ndarray):
            raise UserError(f"{type(image).__name__} is no image: give a path, a Pillow image, an array or a tensor")
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        colours = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
        if image.dtype != np.uint8 or not colours or not image.size:
            raise UserError(
                f"an array of {image.dtype} {list(image.shape)} is no image: give uint8 as [H, W], "
                "[H, W, 3] or [H, W, 4]"
            )
        return as_rgb(Image.fromarray(np.ascontiguousarray(image)))


def _bytes_of(image_CHW: Tensor) -> np.ndarray:
    """The pixels of a tensor as torchvision has them, as an array [H, W, C]."""
    image_CHW = image_CHW.detach()
    if image_CHW.ndim not in (2, 3) or (image_CHW.ndim == 3 and image_CHW.shape[0] not in (1, 3, 4)):
        raise UserError(
            f"a tensor of shape {list(image_CHW.shape)} is no image: give [C, H, W] with 1, 3 or 4 channels"
        )
    if image_CHW.is_floating_point():
        if not bool(((image_CHW >= 0) & (image_CHW <= 1)).all()):
            raise UserError("a tensor of floating point must hold 0 to 1: give the image before it is normalised")
        image_CHW = (image_CHW.float() * 255).round().to(torch.uint8)
    image_HWC = image_CHW if image_CHW.ndim == 2 else image_CHW.permute(1, 2, 0)
    return image_HWC.to("cpu").numpy()


class Predictor:
    """A trained network that answers: see :func:`load`."""

    def __init__(self, trained: Trained, device: torch.device):
        self.config, self.classes, self.device = trained.config, trained.classes, device
        self.network = placed(trained.plain, device).eval()
        self.transform = Transform(trained.config)
        self._precision = pick_own_precision(trained.config.precision, device)

    def predict(self, images: Any, top: int = 5, batch_size: int = 64) -> list[Prediction]:
        """The ``top`` likeliest classes of each image; one image gives a list of one.

        The images, of any kind that :class:`Transform` takes, are prepared ``batch_size`` at a time.
        """
        found: list[Prediction] = []
        for pixels in _batches(map(self.transform.pixels, _each(images)), batch_size):
            found += self.answers(torch.from_numpy(np.stack(pixels)), top)
        return found

    @torch.inference_mode()
    def answers(self, image_BHWC: Tensor, top: int) -> list[Prediction]:
        """The ``top`` likeliest classes of images that :meth:`Transform.pixels` has cut."""
        if top < 1:
            raise UserError(f"top is {top}: must be 1 class or more")
        ready_BCHW = self.transform.finish(image_BHWC.to(self.device))
        with autocast(self.device, self._precision):
            logits_BK = self.network(ready_BCHW).float()
        order_BK = likeliest(logits_BK, top)
        chances = to_host(logits_BK.softmax(1).gather(1, order_BK))
        if not bool(logits_BK.isfinite().all()):
            raise UserError("the logits are NaN or infinite: the network is broken, or its run diverged")
        names = [tuple(self.classes[k] for k in row) for row in to_host(order_BK)]
        return [Prediction(*pair) for pair in zip(names, map(tuple, chances), strict=True)]


def likeliest(logits_BK: Tensor, top: int) -> Tensor:
    """The ``top`` likeliest classes of each row, the likeliest first.

    Of equal logits the first class wins, as where errors are counted. With very many classes a sort of all takes far
    longer than the largest few: it is made only where a class that is left out equals one that is taken.
    """
    value_BT, class_BT = logits_BK.topk(min(top, logits_BK.shape[1]), dim=1)
    if bool(((logits_BK >= value_BT[:, -1:]).sum(1) != class_BT.shape[1]).any()):  # or NaN
        return logits_BK.sort(dim=1, descending=True, stable=True).indices[:, :top]
    class_BT = class_BT.sort(dim=1).values
    order_BT = logits_BK.gather(1, class_BT).sort(dim=1, descending=True, stable=True).indices
    return class_BT.gather(1, order_BT)


def load(path: str | Path, *, branch: str | None = None, device: str = "auto") -> Predictor:
    """The network of a run directory, a checkpoint or a ``.safetensors`` file, ready to predict.

    Args:
        branch: "B0", "B1", ... for that branch with the trunk up to its fork; "ensemble" for the mean of all branches'
            probabilities; ``None`` for the plain network.

    Raises:
        ValueError: nothing of fastdhm at ``path``, a network that tells people apart, or no such branch there.
    """
    path = expanded(path)
    trained = load_trained(path, branch)
    if is_reid(trained.config.dataset):
        raise UserError(f"{path} tells people apart, by features and not by classes: use fastdhm embed")
    config = dataclasses.replace(trained.config, device=device)
    trained = dataclasses.replace(trained, config=config)
    return Predictor(trained, pick_device(device))


def _each(images: Any) -> Iterator[Any]:
    from PIL import Image

    if images is None or isinstance(images, (str, Path, bytes, Image.Image)):
        return iter([images])
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim < 4:
        return iter([images])
    return iter(images)


def _batches(pixels: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    pixels = iter(pixels)
    while batch := list(islice(pixels, max(1, size))):
        yield batch
