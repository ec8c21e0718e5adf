"""``fastdhm bench accuracy``: seconds of training until a test error is reached, of the engine and of the reference.

Both train the same network by the same recipe, the order of the images and their augmentation aside: the engine as it
would, at lower resolution first where the recipe has that, the reference at full resolution throughout in float32. At
fixed steps B0's error on the whole test set is taken at full resolution by the same code; the clock stands still for
that. A run ends at the first such step at which the error is at the target or below. Medians are over seeds, taken in
turns; a run that does not get there has no time, and the benchmark's status is 1. ``preset fast`` is the engine with
that preset of the data set's recipe, where it has one: it need not learn the same, only reach the same error.
"""

import csv
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from fastdhm.benchmarks import harness, machine, report
from fastdhm.benchmarks.contender import Engine, schedule
from fastdhm.benchmarks.harness import Comparison, Result
from fastdhm.benchmarks.reference import Reference
from fastdhm.benchmarks.reference_data import training_loader
from fastdhm.benchmarks.same_step import Yard
from fastdhm.config import TrainConfig
from fastdhm.data import LoadedData
from fastdhm.data.crops import height_width
from fastdhm.data.transforms import DeviceTransform
from fastdhm.engine.device import pick_device, pick_workers
from fastdhm.engine.evaluate import evaluate
from fastdhm.engine.run import build_model, open_data
from fastdhm.engine.schedule import image_side, learning_rate, mimic_scale
from fastdhm.engine.timer import Timer
from fastdhm.engine.train import settle
from fastdhm.errors import UserError
from fastdhm.files import replacing
from fastdhm.recipes import FAST, recipe

OVER = object()
PRESET = "preset fast"
QUICK = {"dataset": "synthetic:256", "arch": "resnet8", "epochs": 2, "eval_steps": 4, "target": 90.0, "seeds": 1}


@dataclass
class Way:
    """One training on its way to the target: seconds of training and error in percent at each evaluation."""

    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def reached(self, target: float) -> bool:
        """Whether it has got there."""
        return bool(self.errors) and self.errors[-1] <= target


def bench(
    *,
    dataset: str = "fashion-mnist",
    arch: str | None = None,
    method: str = "dhm",
    target: float = 12.0,
    epochs: int | None = None,
    eval_steps: int = 50,
    seeds: int = 3,
    preset: bool = True,
    precision: str = "auto",
    data_dir: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    quick: bool = False,
    out: Path = Path("bench"),
    as_json: bool = False,
) -> int:
    """Measure, print and write all of it; returns the exit status, 1 if a run did not reach the target.

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
        device: auto, cpu, cuda or cuda:N.
        threads: of torch (None: as many as it has).
        quick: a smoke run: a few drawn images, and a target that is no feat.
        out: folder for JSON, CSV and the plot.
        as_json: print one JSON object on stdout, all else on stderr.

    Raises:
        ValueError: a value that cannot be, data that is not there, or a folder that cannot be written to.
    """
    if quick:
        dataset, arch, epochs, eval_steps, target, seeds = QUICK.values()
    harness.check_counts(**{"seeds": seeds, "eval-steps": eval_steps, "epochs": epochs, "threads": threads})
    if not 0 < target < 100:
        raise UserError(f"--target is {target}: must be an error in percent, above 0 and below 100")
    report.check_folder(out)
    console, place = Console(stderr=as_json), pick_device(device)
    given = {"epochs": epochs, "data_dir": data_dir, "workers": pick_workers(None, place), "precision": precision}
    given |= {"device": str(place), "compile": "off"}
    given = {name: value for name, value in given.items() if value is not None}
    config = settle(TrainConfig(**recipe(dataset, arch, method) | given))
    configs = {"fastdhm": config}
    if dataset.partition(":")[0] in FAST and preset:
        configs[PRESET] = settle(TrainConfig(**recipe(dataset, arch, method, "fast") | given))
    configs["reference"] = config
    with harness.threads(threads):
        about = machine.describe(place)
        report.print_machine(console, about)
        fault, ways = measure(configs, target, eval_steps, seeds, console)
    label = f"{config.arch} {method} {dataset}: to {target:g}% error"
    comparison = _comparison(label, ways, target, fault)
    report.print_comparison(console, comparison)
    if not fault:
        write(ways, target, out, f"{label}, {about['gpu'] or about['cpu']}")
    ratios = {name: comparison.ratio("reference", name) for name in ways if name != "reference"}
    answer = {f"{name.replace(' ', '_')}_s": _median_seconds(comparison, name) for name in ways}
    answer |= {"speedup": ratios["fastdhm"].median if ratios["fastdhm"] else None}
    if ratios.get(PRESET):
        answer["preset_fast_speedup"] = ratios[PRESET].median
    answer |= {"runs": {name: [dataclasses.asdict(way) for way in found] for name, found in ways.items()}}
    settings = {
        name: getattr(config, name) for name in ("dataset", "arch", "method", "epochs", "batch_size", "precision")
    }
    settings |= {"target": target, "eval_steps": eval_steps, "seeds": seeds, "device": str(place), "quick": quick}
    marks = [
        report.Mark(name=f"reference over {name}", where=label, value=ratio) for name, ratio in ratios.items() if ratio
    ]
    return report.conclude(
        "accuracy", [comparison], marks=marks, machine=about, settings=settings, folder=out, console=console,
        as_json=as_json, answer=answer,
    )  # fmt: skip


def measure(
    configs: dict[str, TrainConfig], target: float, eval_steps: int, seeds: int, console: Console
) -> tuple[str | None, dict[str, list[Way]]]:
    """What is wrong with the engine's steps (None: nothing), and if nothing is, a training of each for every seed."""
    ways: dict[str, list[Way]] = {name: [] for name in configs}
    for seed in range(seeds):
        for name, config in configs.items():
            seeded = dataclasses.replace(config, seed=seed)
            data = open_data(seeded, console)
            try:
                if not any(ways.values()):
                    yard = Yard(seeded, len(data.classes))
                    fault = yard.judge_engine(yard.engine(seeded))
                    if fault:
                        return fault, ways
                start = start_reference if name == "reference" else start_engine
                way = to_target(*start(seeded, data), seeded, data, target, eval_steps)
            finally:
                data.close()
            ways[name].append(way)
            end = f"{way.errors[-1]:.2f}% after {way.seconds[-1]:.1f} s, {way.steps[-1]} steps"
            console.print(f"seed {seed}, {name}: {end}", highlight=False)
    return None, ways


def start_engine(config: TrainConfig, data: LoadedData) -> tuple[nn.Module, Iterator]:
    """The engine's network, and its training: each item drawn from it is a step taken."""
    engine = Engine(config, len(data.classes))
    run = engine.run

    def steps() -> Iterator[None]:
        for run.at.epoch in range(config.epochs):
            run.begin_epoch()
            with Timer(run.at.step).feed(data.train, run.at.epoch, 0, run.device) as batches:
                for number, batch in enumerate(batches):
                    now = run.at.epoch + number / len(data.train)
                    run.set_learning_rate(learning_rate(now, **schedule(config)))
                    side = image_side(now / config.epochs, run.side, config.progressive)
                    engine.train(batch, mimic_scale(now, config.mimic_warmup), side)
                    yield

    return run.judged, steps()


def start_reference(config: TrainConfig, data: LoadedData) -> tuple[nn.Module, Iterator]:
    """The same of the reference, from the same weights."""
    torch.manual_seed(config.seed)
    reference = Reference(build_model(config, len(data.classes)), config, torch.device(config.device))
    loader = training_loader(config, config.workers)

    def steps() -> Iterator[None]:
        for epoch in range(config.epochs):
            for number, batch in enumerate(loader):
                now = epoch + number / len(loader)
                reference.set_learning_rate(learning_rate(now, **schedule(config)))
                reference.step(*batch, mimic_scale(now, config.mimic_warmup))
                yield

    return reference.network.trunk, steps()


def to_target(
    network: nn.Module,
    steps: Iterator,
    config: TrainConfig,
    data: LoadedData,
    target: float,
    eval_steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Way:
    """Train until the target is reached or the steps are over; only training counts."""
    way, device, trained = Way(), torch.device(config.device), 0.0
    transform, side = DeviceTransform(config.mean, config.std).to(device), min(height_width(config.image_size))
    for number in count(1):
        start = clock()
        over = next(steps, OVER) is OVER
        due = over or number % eval_steps == 0
        if due and device.type == "cuda":
            torch.cuda.synchronize(device)
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
    """Times to the target as a comparison, a sample for each seed; runs that did not get there are failures."""
    results = {}
    for name, found in ways.items():
        short = [way for way in found if not way.reached(target)]
        failure = fault if name == "fastdhm" else None
        if short:
            failure = f"{len(short)} of {len(found)} runs ended at {min(way.errors[-1] for way in short):.2f}% or above"
        samples_ms = [] if short else [1e3 * way.seconds[-1] for way in found]
        results[name] = Result(failure=failure, calls_per_sample=1, samples_ms=samples_ms, peak_bytes=None)
    return Comparison(label=label, results=results)


def _median_seconds(comparison: Comparison, name: str) -> float | None:
    time_ms = comparison.time_ms(name)
    return time_ms.median / 1e3 if time_ms else None


def write(ways: dict[str, list[Way]], target: float, folder: Path, title: str) -> None:
    """``accuracy_curves.csv``, a row for each evaluation, and ``accuracy.png``."""
    rows = [
        (name, seed, step, seconds, error)
        for name, found in ways.items()
        for seed, way in enumerate(found)
        for step, seconds, error in zip(way.steps, way.seconds, way.errors, strict=True)
    ]
    with replacing(folder / "accuracy_curves.csv") as path, open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "seed", "step", "seconds", "error_percent"])
        writer.writerows(rows)
    curves = {name: [(way.seconds, way.errors) for way in found] for name, found in ways.items()}
    report.plot_ways(folder / "accuracy.png", curves, target, title, "seconds of training", "test error, %")
