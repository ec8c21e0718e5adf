"""``fastdhm data show``: a sheet of training images, as the network of a run would see them.

Legend: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastdhm.config import TrainConfig
from fastdhm.data import LoadedData
from fastdhm.data.augment.augmentation import Augmentation
from fastdhm.engine.build import how_stored, open_data, training_transform
from fastdhm.engine.labels import Labelling, Labels
from fastdhm.engine.settle import settle
from fastdhm.errors import UserError
from fastdhm.system.console import Console
from fastdhm.system.files import replacing

MOST = 1000  # images on a sheet
SIDE = 128  # pixels of an image on it, about
COLUMNS, GAP, LINE, MARGIN = 8, 10, 16, 16
INK, FAINT = "#222222", "#777777"


class Shown(NamedTuple):
    """An image as the network sees it, the label that it is learnt with or both shares, and what was done to it."""

    image: Image.Image
    label: str
    done: str


def show(config: TrainConfig, path: Path, *, images: int, epoch: int) -> None:
    """Write a PNG of ``images`` of an epoch, counted from 1: augmented, with labels and what was drawn.

    Nothing is trained and nothing is built. What the step shrinks, in a progressive run, is shown whole.

    Raises:
        ValueError: numbers out of range, or anything that would keep the run from starting.
    """
    if not 1 <= images <= MOST:
        raise UserError(f"images is {images}: must be 1 to {MOST}")
    if not 1 <= epoch <= config.epochs:
        raise UserError(f"epoch is {epoch}: must be 1 to {config.epochs}, the epochs of the run")
    console = Console()
    config = settle(replace(config, device="cpu", precision="auto", impl="auto", cuda_graphs=False))
    if config.loader == "auto" and how_stored(config) is None:
        config = replace(config, loader="torch", workers=0)  # it reads the images themselves, and no others
    with closing(open_data(config, console)) as data:
        shown = list(islice(_seen(config, data, epoch - 1, images), images))
    picture = sheet(shown)
    with replacing(path) as temporary:
        picture.save(temporary, "PNG")
    console.result(f"{len(shown)} training images of {config.dataset}, epoch {epoch}: {path}")


def _seen(config: TrainConfig, data: LoadedData, epoch: int, images: int) -> Iterator[Shown]:
    """The images of an epoch, in the order of training.

    All images of a batch are mixed in one share. So of a run that mixes, some of each batch are taken: a row of the
    sheet, or more where there are few batches.
    """
    transform, labelling = training_transform(config), Labelling(config, len(data.classes), torch.device("cpu"))
    labelling.learn_from(data.target_N, data.classes)
    each = max(COLUMNS, math.ceil(images / len(data.train))) if labelling.mixes else None
    with data.train.epoch(epoch) as batches:
        for number, batch in enumerate(batches):
            assert batch.view_B is not None
            image_BCHW = transform(batch.image_BHWC, batch.index_B, epoch, view_B=batch.view_B)
            done_B = _done(transform.augmentation, batch.view_B, epoch, image_BCHW)
            labels = labelling.label(batch, image_BCHW, epoch, number)  # this mixes them
            label_B = _named(labels, data.classes)
            yield from islice(map(Shown, map(Image.fromarray, pixels(image_BCHW, config)), label_B, done_B), each)


def _named(labels: Labels, classes: tuple[str, ...]) -> list[str]:
    """The label of each image, or the shares of both where it is mixed with another."""
    target_B = labels.target_B.tolist()
    if labels.target2_B is None or labels.share_B is None:
        return [classes[target] for target in target_B]
    pairs = zip(target_B, labels.share_B.tolist(), labels.target2_B.tolist(), strict=True)
    return [
        f"{share:.0%} {classes[one]}, {1 - share:.0%} {classes[other]}" if share < 1 else classes[one]
        for one, share, other in pairs
    ]


def _done(augmentation: Augmentation | None, view_B: np.ndarray, epoch: int, image_BCHW: Tensor) -> list[str]:
    if augmentation is None:
        return [""] * len(view_B)
    return augmentation.describe(view_B, epoch, (image_BCHW.shape[2], image_BCHW.shape[3]))


def pixels(image_BCHW: Tensor, config: TrainConfig) -> np.ndarray:
    """Normalised images as bytes again, ``uint8`` BHWC."""
    std_C, mean_C = torch.tensor(config.std), torch.tensor(config.mean)
    level_BHWC = (image_BCHW.permute(0, 2, 3, 1) * std_C + mean_C) * 255
    return level_BHWC.round().clamp(0, 255).to(torch.uint8).numpy()


def sheet(shown: Sequence[Shown]) -> Image.Image:
    """All images in rows, each with its label and what was done to it; small ones are enlarged pixel by pixel."""
    width, height = shown[0].image.size
    times = max(1, round(SIDE / max(width, height)))
    width, height = width * times, height * times
    room = max(width, SIDE)
    lines = [(_lines(each.label, room), _lines(each.done, room)) for each in shown]
    step_x, step_y = room + GAP, height + LINE * max(len(label) + len(done) for label, done in lines) + GAP
    columns = min(COLUMNS, len(shown))
    size = 2 * MARGIN + columns * step_x - GAP, 2 * MARGIN + -(-len(shown) // columns) * step_y - GAP
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for number, each in enumerate(shown):
        x, y = MARGIN + number % columns * step_x, MARGIN + number // columns * step_y
        picture.paste(each.image.resize((width, height), Image.Resampling.NEAREST), (x, y))
        label, done = lines[number]
        for n, words in enumerate(label + done):
            ink = INK if n < len(label) else FAINT
            draw.text((x, y + height + 2 + n * LINE), words, fill=ink, font=_font())
    return picture


def _lines(text: str, width: int) -> list[str]:
    """A text in lines of so many pixels; a word that is longer is cut."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _font().getlength(longer) <= width:
            lines[-1] = longer
            continue
        while _font().getlength(word) > width:
            word = word.rstrip("…")[:-1] + "…"
        lines.append(word)
    return lines


@functools.cache
def _font() -> Any:
    """That of the other pictures: Pillow's own has no letter with an accent."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 11)
