"""The engine's own training step for benchmarks, exactly as ``fastdhm train`` runs it.

Legend: A the branches that a step computes, B batch, C channels, H height, W width.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from fastdhm import models
from fastdhm.benchmarks.harness.frame import check_value
from fastdhm.config import TrainConfig
from fastdhm.data.loaders.crops import height_width
from fastdhm.data.loaders.loader import Batch
from fastdhm.data.sources.source import is_reid
from fastdhm.engine.compiling import computes
from fastdhm.engine.device import pick_compile
from fastdhm.engine.fast.graphs import GraphedStep
from fastdhm.engine.run import Run
from fastdhm.engine.settle import settle
from fastdhm.engine.step import make_step, take_step
from fastdhm.errors import UserError
from fastdhm.recipes import recipe

T = TypeVar("T")
LONG_RUN = 1 << 62  # steps: long enough that `auto` always compiles
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
SMALL = 64  # pixels: images up to this side count as CIFAR's kind


def make_config(arch: str, image_size: int | tuple[int, int] | None, batch_size: int | None, **given) -> TrainConfig:
    """The paper's recipe for ``arch``: CIFAR-100's for small images, else ImageNet's; ``given`` overrides it.

    ``None``: the image size that the paper runs the network at; 128 small images a batch, or 32 large ones.
    """
    height, width = models.family_of(arch).image_size
    if image_size is None:
        image_size = height if height == width else (height, width)
    small = max(height_width(image_size)) <= SMALL
    values = recipe("cifar100" if small else "imagenet", arch, given.get("method", "dhm"))
    batch_size = batch_size or (128 if small else 32)
    return _settled(values | {"image_size": image_size, "batch_size": batch_size} | given)


def recipe_config(dataset: str, arch: str | None, method: str, preset: str = "paper", **given) -> TrainConfig:
    """A run by the data set's recipe, settled; what is ``given`` and not None overrides it. ``compile`` is off if not.

    Raises:
        ValueError: a value that cannot be, or people: what the engine does for them, the reference does not do.
    """
    if is_reid(dataset):
        raise UserError(
            f"data set '{dataset}': the reference classifies images and has no re-identification; name another"
        )
    given = {name: value for name, value in given.items() if value is not None}
    return _settled(recipe(dataset, arch, method, preset) | {"compile": "off"} | given)


def _settled(values: dict[str, Any]) -> TrainConfig:
    """The config of a run from the user's flags."""
    try:
        config = TrainConfig(**values)
        check_value("precision", config.precision, PRECISIONS)
        return settle(config)
    except ValueError as error:
        raise UserError(str(error)) from error


class Engine:
    """A run without its data: what the loop does with a batch, from host memory to the updated weights.

    Args:
        config: settled, see :func:`fastdhm.engine.train.settle`; ``compile`` auto decides as in a long run.
        num_classes: K.
    """

    def __init__(self, config: TrainConfig, num_classes: int):
        assert config.run_dir is not None  # it is settled
        self.run = Run(config, Path(config.run_dir), tuple(map(str, range(num_classes))))
        self.compiled, _ = pick_compile(config.compile, self.run.device, LONG_RUN, self.run.model)
        compute = computes(self.run, self.compiled)
        self.step = make_step(self.run, compute)
        if config.cuda_graphs:
            self.step = GraphedStep(self.step, form=lambda: None)
        self.run.num_views = config.batch_size  # as in training, the draws of an epoch are made at its start
        self.run.begin_epoch()

    @contextmanager
    def captured(self, rewind: Callable[[], None]) -> Iterator[None]:
        """Inside, a step that is captured is so from the first on, as ``rewind`` has taken those that come before.

        The graph is dropped at the end: in it is what held inside.
        """
        if isinstance(self.step, GraphedStep):
            rewind()
        yield
        if isinstance(self.step, GraphedStep):
            self.step = GraphedStep(self.step.step, self.step.form, self.step.graphs)

    def train(self, batch: Batch, mimic_scale: float = 1.0, side: int | None = None) -> Tensor:
        """One step on a batch, its numbers added to the run's sums; the loss, on the device.

        ``side``: side of the images that the network sees; ``None``: as in the batch.
        """
        return take_step(self.run, self.step, batch, mimic_scale, side or self.run.side)


class Waited(Generic[T]):
    """Iterates over items; ``seconds`` is how long the loop has waited for them."""

    def __init__(self, items: Iterable[T]):
        start = time.perf_counter()
        self.items = iter(items)  # starts the workers of a DataLoader
        self.seconds = time.perf_counter() - start

    def __iter__(self) -> Iterator[T]:
        while True:
            start = time.perf_counter()
            item = next(self.items, None)
            self.seconds += time.perf_counter() - start
            if item is None:
                return
            yield item


def random_batch(config: TrainConfig, num_classes: int) -> Batch:
    """Noise in the shape of a batch: the time of a step does not depend on the pixels."""
    generator = torch.Generator().manual_seed(config.seed)
    shape = (config.batch_size, *height_width(config.image_size), 3)
    return Batch(
        image_BHWC=torch.randint(256, shape, dtype=torch.uint8, generator=generator),
        target_B=torch.randint(num_classes, shape[:1], generator=generator),
        index_B=torch.arange(config.batch_size),
    )
