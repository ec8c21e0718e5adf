"""``fastdhm bench accuracy``: seconds of training until a test error is reached, of the engine and of the reference.

Both train the same network by the same recipe, except for the order of the images and their augmentation. The engine
trains as usual, at lower resolution first if the recipe says so. The reference trains at full resolution in float32. At
fixed steps the same code measures B0's error on the whole test set at full resolution, while the clock is stopped. A
run ends at the first of these steps with an error at or below the target. Medians are over seeds; the sides take turns.
A run that does not reach the target has no time, and the benchmark's status is 1. ``preset fast`` is the engine with
that preset of the data set's recipe, if it has one: it may learn differently, but must reach the same error.

Legend: M branches.
"""

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdhm.benchmarks.harness import report
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.benchmarks.harness.frame import Frame, check_counts
from fastdhm.benchmarks.harness.machine import wait_for
from fastdhm.benchmarks.harness.timing import Comparison
from fastdhm.benchmarks.reference.contender import Engine, recipe_config
from fastdhm.benchmarks.reference.data import training_loader, training_transform
from fastdhm.benchmarks.reference.model import Reference
from fastdhm.benchmarks.reference.same_step import Yard
from fastdhm.config import TrainConfig
from fastdhm.data import LoadedData
from fastdhm.data.augment.transforms import DeviceTransform
from fastdhm.data.loaders.crops import height_width
from fastdhm.data.sources.load import load_sources
from fastdhm.engine.build import build_model, open_data
from fastdhm.engine.device import pick_workers
from fastdhm.engine.evaluate import evaluate
from fastdhm.engine.optim.schedule import mimic_scale
from fastdhm.engine.optimizer import learning_rate_of
from fastdhm.engine.timer import Timer
from fastdhm.errors import UserError
from fastdhm.recipes import FAST
from fastdhm.system.files import write_csv
from fastdhm.system.paths import default_data_dir

OVER = object()
PRESET = "preset fast"
SETTINGS = ("dataset", "arch", "method", "epochs", "batch_size", "precision")


@dataclass
class Way:
    """The progress of one training: seconds of training and error in percent at each evaluation."""

    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def reached(self, target: float) -> bool:
        """Whether it has reached the target."""
        return bool(self.errors) and self.errors[-1] <= target


def bench(
    frame: Frame,
    *,
    dataset: str,
    arch: str | None,
    method: str,
    target: float,
    epochs: int | None,
    eval_steps: int,
    seeds: int,
    preset: bool,
    precision: str,
    data_dir: str | None,
) -> int:
    """Time all of it; returns the exit status, 1 if a run did not reach the target.

    The results are written after every seed, so a benchmark that is stopped leaves the finished seeds.

    Args:
        dataset: as in training.
        arch: the network (None: the data set's usual one).
        method: dhm, dsl or baseline, of both.
        target: error of B0 on the test set, in percent.
        epochs: of the schedule, for both (None: the recipe's); a run gives up after them.
        eval_steps: steps between evaluations.
        seeds: trainings of each.
        preset: whether the data set's fast preset takes part.
        precision: of the engine; the reference is float32.
        data_dir: folder of the data sets.

    Raises:
        ValueError: a value out of range, data that is not there, or a folder that cannot be written to.
    """
    check_counts(seeds=seeds, eval_steps=eval_steps, epochs=epochs)
    if not 0 < target < 100:
        raise UserError(f"--target is {target}: must be an error in percent, above 0 and below 100")
    given = {"epochs": epochs, "data_dir": data_dir, "precision": precision, "device": str(frame.device)}
    configs = contenders(dataset, arch, method, preset, workers=pick_workers(None, frame.device), **given)
    settings = {name: getattr(configs["fastdhm"], name) for name in SETTINGS}
    settings |= {"target": target, "eval_steps": eval_steps, "seeds": seeds}
    label = f"{configs['fastdhm'].arch} {method} {dataset}: to {target:g}% error"
    with frame.measuring():
        fault = judge(configs["fastdhm"])
        for ways in measure(frame, configs, target, eval_steps, 0 if fault else seeds):
            comparison = _comparison(label, ways, target, fault)
            found: dict[str, Any] = {
                "marks": _marks(comparison), "settings": settings, "answer": _answer(comparison, ways)
            }  # fmt: skip
            if ways["reference"]:
                frame.write([comparison], **found)
                write(ways, target, frame.out, f"{label}, {frame.where}")
    report.print_comparison(frame.console, comparison)
    return frame.conclude([comparison], **found)


def contenders(dataset: str, arch: str | None, method: str, preset: bool, **given) -> dict[str, TrainConfig]:
    """Side -> its config; see :func:`recipe_config`."""
    usual = recipe_config(dataset, arch, method, **given)
    training_transform(usual)  # refuse what the reference lacks before the engine runs
    has_fast = preset and dataset.partition(":")[0] in FAST
    fast = {PRESET: recipe_config(dataset, arch, method, "fast", **given)} if has_fast else {}
    return {"fastdhm": usual, **fast, "reference": usual}


def judge(config: TrainConfig) -> str | None:
    """What is wrong with the engine's steps, or None."""
    source, _ = load_sources(config.dataset, Path(config.data_dir or default_data_dir()))
    yard = Yard(config, len(source.classes))
    return harness.failure(lambda: yard.judge_engine(yard.engine(config)))


def measure(
    frame: Frame, configs: dict[str, TrainConfig], target: float, eval_steps: int, seeds: int
) -> Iterator[dict[str, list[Way]]]:
    """Train each side once per seed; yields all results so far, before the first seed and after each."""
    ways: dict[str, list[Way]] = {name: [] for name in configs}
    yield ways
    for seed in range(seeds):
        for name, config in configs.items():
            seeded = dataclasses.replace(config, seed=seed)
            with closing(open_data(seeded, frame.console)) as data:
                start = start_reference if name == "reference" else start_engine
                way = to_target(*start(seeded, data), seeded, data, target, eval_steps)
            ways[name].append(way)
            end = f"{way.errors[-1]:.2f}% after {way.seconds[-1]:.1f} s, {way.steps[-1]} steps"
            frame.say(f"seed {seed}, {name}: {end}")
        yield ways


def start_engine(config: TrainConfig, data: LoadedData) -> tuple[nn.Module, Generator[None]]:
    """The engine's network, and an iterator that trains it: each item is one step."""
    engine = Engine(config, len(data.classes))
    run = engine.run
    run.learn_from(data)

    def steps() -> Generator[None]:
        for run.at.epoch in range(config.epochs):
            run.begin_epoch()
            with Timer(run.at.step).feed(data.train, run.at.epoch, 0, run.device) as batches:
                for number, batch in enumerate(batches):
                    now = run.at.epoch + number / len(data.train)
                    lr, scale, side = run.scheduled(now)
                    run.set_learning_rate(lr)
                    engine.train(batch, scale, side)
                    yield

    return run.judged, steps()


def start_reference(config: TrainConfig, data: LoadedData) -> tuple[nn.Module, Generator[None]]:
    """The same for the reference, from the same weights."""
    torch.manual_seed(config.seed)
    reference = Reference(build_model(config, len(data.classes)), config, torch.device(config.device))
    loader = training_loader(config, pick_workers(config.workers, torch.device(config.device)))

    def steps() -> Generator[None]:
        for epoch in range(config.epochs):
            for number, (image_BCHW, target_B) in enumerate(loader):
                now = epoch + number / len(loader)
                reference.set_learning_rate(learning_rate_of(config, now))
                reference.step(image_BCHW, target_B, mimic_scale(now, config.mimic_warmup))
                yield

    return reference.network.trunk, steps()


def to_target(
    network: nn.Module,
    steps: Generator[None],
    config: TrainConfig,
    data: LoadedData,
    target: float,
    eval_steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Way:
    """Train until the target is reached or the steps are over; only training time counts."""
    way, device, trained = Way(), torch.device(config.device), 0.0
    transform, side = DeviceTransform(config.mean, config.std).to(device), min(height_width(config.image_size))
    for number in count(1):
        start = clock()
        over = next(steps, OVER) is OVER
        due = over or number % eval_steps == 0
        if due:
            wait_for(device)
        trained += clock() - start
        if due:
            errors = evaluate(network, data.val, transform, device, torch.float32, side)
            way.steps.append(number - over)
            way.seconds.append(trained)
            way.errors.append(errors.top1_M[0])
            if over or way.reached(target):
                steps.close()
                return way
    raise AssertionError("counting does not end")


def _comparison(label: str, ways: dict[str, list[Way]], target: float, fault: str | None) -> Comparison:
    """Times to the target as a comparison, one sample per seed; runs that missed it are failures."""
    failures: dict[str, str | None] = {"fastdhm": fault}
    for name, found in ways.items():
        short = [way.errors[-1] for way in found if not way.reached(target)]
        told = f"{len(short)} of {len(found)} runs ended at {min(short, default=0):.2f}% or above"
        failures[name] = told if short else failures.get(name)
    seconds = {name: [way.seconds[-1] for way in found] for name, found in ways.items()}
    return harness.timed_elsewhere(label, failures, seconds)


def _answer(comparison: Comparison, ways: dict[str, list[Way]]) -> dict[str, object]:
    """Median seconds to the target, the speedups, and the progress of every run."""
    medians_ms = {name.replace(" ", "_"): comparison.median_ms(name) for name in ways}
    answer: dict[str, object] = {f"{name}_s": ms / 1e3 if ms else None for name, ms in medians_ms.items()}
    answer |= {"speedup": comparison.speedup("reference", "fastdhm")}
    if comparison.speedup("reference", PRESET):
        answer["preset_fast_speedup"] = comparison.speedup("reference", PRESET)
    return answer | {"runs": {name: [dataclasses.asdict(way) for way in found] for name, found in ways.items()}}


def _marks(comparison: Comparison) -> list[report.Mark]:
    others = [name for name in comparison.results if name != "reference"]
    return report.ratio_marks([comparison], {f"reference over {name}": ("reference", name) for name in others})


def write(ways: dict[str, list[Way]], target: float, folder: Path, title: str) -> None:
    """Write ``accuracy_curves.csv``, a row per evaluation, and ``accuracy.png``."""
    rows = [
        (name, seed, step, seconds, error)
        for name, found in ways.items()
        for seed, way in enumerate(found)
        for step, seconds, error in zip(way.steps, way.seconds, way.errors, strict=True)
    ]
    write_csv(folder / "accuracy_curves.csv", ["run", "seed", "step", "seconds", "error_percent"], rows)
    curves = {name: [(way.seconds, way.errors) for way in found] for name, found in ways.items()}
    report.plot_ways(folder / "accuracy.png", curves, target, title, "seconds of training", "test error, %")
