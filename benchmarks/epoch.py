"""``fastdhm bench epoch``: images per second over whole epochs, data included, for the engine and the eager reference.

Both train the same network by the same recipe at full resolution: the engine with its own loader, the reference with a
``DataLoader`` of PIL images and as many workers. The time that each loop waits for its next batch is measured. With
``--agreement``, both and the engine in float32 also train from the same weights on the same batches, and their loss
curves are drawn and compared.

Legend: B batch, C channels, H height, W width.
"""

import math
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastdhm.benchmarks import agreement as agree
from fastdhm.benchmarks.harness import report
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.benchmarks.harness.frame import Frame, check_counts
from fastdhm.benchmarks.harness.timing import Comparison, Peer, spread
from fastdhm.benchmarks.reference.contender import Engine, Waited, recipe_config
from fastdhm.benchmarks.reference.data import training_loader
from fastdhm.benchmarks.reference.model import Reference
from fastdhm.benchmarks.reference.same_step import Yard
from fastdhm.config import TrainConfig
from fastdhm.data import LoadedData
from fastdhm.engine.build import open_data
from fastdhm.engine.device import pick_workers
from fastdhm.engine.timer import Timer

MARKS = {"reference over fastdhm": ("reference", "fastdhm")}
SETTINGS = ("dataset", "arch", "method", "batch_size", "loader", "precision", "workers", "compile")


@dataclass
class Epochs:
    """Seconds that the loop waited for data, and images, in each epoch of one side; the first epoch warms up."""

    waited: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)

    def add(self, waited: float, images: int) -> dict[str, Tensor]:
        """Record an epoch; returns what is checked."""
        self.waited.append(waited)
        self.images.append(images)
        return {"images": torch.tensor(images)}


def bench(
    frame: Frame,
    *,
    dataset: str,
    arch: str | None,
    method: str,
    batch_size: int | None,
    precision: str,
    workers: int | None,
    max_steps: int | None,
    agreement: int | None,
    data_dir: str | None,
) -> int:
    """Time all of it; returns the exit status, 1 if a step or an epoch was not the right one.

    Args:
        dataset: as in training, images of one's own too.
        arch: the network (None: the data set's usual one).
        method: dhm, dsl or baseline, of both.
        batch_size: images a step (None: the recipe's).
        precision: of the engine; the reference is float32.
        workers: of both loaders (None: what training takes).
        max_steps: of an epoch (None: all of it).
        agreement: steps over which the losses of both are compared (None: not at all).
        data_dir: folder of the data sets.

    Raises:
        ValueError: a value out of range, data that is not there, or a folder that cannot be written to.
    """
    check_counts(max_steps=max_steps, batch_size=batch_size, agreement=agreement)
    config = recipe_config(
        dataset, arch, method, batch_size=batch_size, data_dir=data_dir, precision=precision, progressive=0.0,
        workers=pick_workers(workers, frame.device), device=str(frame.device),
        # as in a long run; compiled in the warm-up epoch
        compile="auto" if frame.device.type == "cuda" else "off",
    )  # fmt: skip
    with frame.measuring(), closing(open_data(config, frame.console)) as data:
        comparison, sides = measure(frame, config, data, max_steps)
        comparisons, answer = [comparison], _answer(comparison, sides)
        marks = _marks(comparison, sides)
        settings = {name: getattr(config, name) for name in SETTINGS} | {"max_steps": max_steps}
        frame.plot_bars([comparison], "An epoch")
        frame.write(comparisons, marks=marks, settings=settings, answer=answer)  # kept if the rest is stopped
        if agreement:
            found = agree.compare(config, data, agreement, frame.console)
            agree.write(found, frame.out, f"{config.arch} {config.method}, {config.dataset}, {frame.where}")
            found.show(frame.console)
            comparisons.append(found.comparison())
            answer["agreement"] = found.summary()
    return frame.conclude(comparisons, marks=marks, settings=settings, answer=answer)


def measure(
    frame: Frame, config: TrainConfig, data: LoadedData, max_steps: int | None
) -> tuple[Comparison, dict[str, Epochs]]:
    """Epochs of the engine and of the reference in turns, after their steps are checked."""
    label = f"{config.arch} {config.method} {config.dataset} batch {config.batch_size}"
    frame.say(f"\n{label}: checking the steps against float64")
    yard, loader = Yard(config, len(data.classes)), training_loader(config, pick_workers(config.workers, frame.device))
    engine, reference = yard.engine(config), yard.reference()
    failures = {"fastdhm": harness.failure(lambda: yard.judge_engine(engine)), "reference": yard.judge_reference()}
    for one in (engine.run, reference):
        one.set_learning_rate(config.lr)
    engine.run.learn_from(data)
    sides = {name: Epochs() for name in failures}
    runs = {
        "fastdhm": lambda: engine_epoch(engine, data, max_steps, sides["fastdhm"]),
        "reference": lambda: reference_epoch(reference, loader, max_steps, sides["reference"]),
    }
    expected = config.batch_size * min(len(data.train), max_steps or len(data.train))
    peers = [Peer(name=name, run=run, check=partial(_check, failures[name], expected)) for name, run in runs.items()]
    # the epoch of the check is the warm-up
    comparison = frame.compare(label, peers, max_seconds=math.inf, min_sample_seconds=0, memory=False)
    return comparison, sides


def _check(failure: str | None, expected: int, result: dict[str, Tensor]) -> str | None:
    images = result["images"].item()
    return failure or (None if images == expected else f"an epoch had {images} images: must be {expected}")


def engine_epoch(engine: Engine, data: LoadedData, max_steps: int | None, side: Epochs) -> dict[str, Tensor]:
    """An epoch of the engine, with the reads of a log point at its end."""
    seen, at, timer = 0, engine.run.at, Timer(engine.run.at.step)
    engine.run.begin_epoch()
    with timer.feed(data.train, at.epoch, 0, engine.run.device) as batches:
        for batch in islice(batches, max_steps):
            engine.train(batch)
            seen += len(batch.target_B)
    engine.run.sums.read_interval()
    at.epoch += 1
    return side.add(timer.waited, seen)


def reference_epoch(reference: Reference, loader: DataLoader, max_steps: int | None, side: Epochs) -> dict[str, Tensor]:
    """An epoch of the reference."""
    seen, waited = 0, Waited(loader)
    for image_BCHW, target_B in islice(waited, max_steps):
        reference.step(image_BCHW, target_B)
        seen += len(target_B)
    return side.add(waited.seconds, seen)


def _answer(comparison: Comparison, sides: dict[str, Epochs]) -> dict[str, object]:
    """For both: images per second and the share of an epoch that the loop waits for data; and the speedup."""
    answer: dict[str, object] = {}
    for name, side in sides.items():
        median_ms = comparison.median_ms(name)
        answer[f"{name}_images_per_s"] = 1e3 * side.images[-1] / median_ms if median_ms else None
        answer[f"{name}_data_wait"] = _wait_percent(comparison, name, side).median / 100 if median_ms else None
    return answer | {"speedup": comparison.speedup("reference", "fastdhm")}


def _wait_percent(comparison: Comparison, name: str, side: Epochs) -> harness.Spread:
    """Percent of an epoch that the loop waited for data, without the first epoch."""
    pairs = zip(side.waited[1:], comparison.results[name].samples_ms, strict=True)
    return spread([1e5 * waited / time_ms for waited, time_ms in pairs])


def _marks(comparison: Comparison, sides: dict[str, Epochs]) -> list[report.Mark]:
    marks, where = report.ratio_marks([comparison], MARKS), comparison.label
    for name, side in sides.items():
        if comparison.time_ms(name):
            rate = spread([1e3 * side.images[-1] / ms for ms in comparison.results[name].samples_ms])
            wait = _wait_percent(comparison, name, side)
            marks.append(report.Mark(name=name, where=where, value=rate, unit="images/s"))
            marks.append(report.Mark(name=f"{name} waits for data", where=where, value=wait, unit="%"))
    return marks
