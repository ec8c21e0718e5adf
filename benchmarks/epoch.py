"""``fastdhm bench epoch``: images a second over whole epochs, data included, of the engine and of the eager reference.

Both train the same network by the same recipe at full resolution, the engine from its own loader, the reference from a
``DataLoader`` of PIL images with as many workers. What a loop waits for its next batch is measured in both. With
``--agreement`` both, and the engine in float32, also train from the same weights on the same batches, and the curves of
their losses are drawn and held together.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console

from fastdhm.benchmarks import agreement, harness, machine, report
from fastdhm.benchmarks.contender import Engine, Waited
from fastdhm.benchmarks.harness import Comparison, Result, spread
from fastdhm.benchmarks.reference import Reference
from fastdhm.benchmarks.reference_data import training_loader
from fastdhm.benchmarks.same_step import Yard
from fastdhm.config import TrainConfig
from fastdhm.data import LoadedData
from fastdhm.engine.device import pick_device, pick_workers
from fastdhm.engine.run import open_data
from fastdhm.engine.timer import Timer
from fastdhm.engine.train import settle
from fastdhm.recipes import recipe

QUICK = {"dataset": "synthetic:64", "arch": "resnet8", "batch_size": 16}


@dataclass
class Epochs:
    """Of each epoch of one side: its seconds, those of them that the loop waited for data, and its images."""

    seconds: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)


def bench(
    *,
    dataset: str = "fashion-mnist",
    arch: str | None = None,
    method: str = "dhm",
    batch_size: int | None = None,
    precision: str = "auto",
    workers: int | None = None,
    max_steps: int | None = None,
    agree: int | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    rounds: int = 3,
    quick: bool = False,
    out: Path = Path("bench"),
    as_json: bool = False,
) -> int:
    """Measure, print and write all of it; returns the exit status, 1 if a step or an epoch was not the right one.

    Args:
        dataset: as in training, images of one's own too.
        arch: the network (None: the data set's usual one).
        method: dhm, dsl or baseline, of both.
        batch_size: images a step (None: the recipe's).
        precision: of the engine; the reference is float32.
        workers: of both loaders (None: what training takes).
        max_steps: of an epoch (None: all of it).
        agree: steps over which the losses of both are held together (None: not at all).
        data_dir: folder of the data sets.
        device: auto, cpu, cuda or cuda:N.
        threads: of torch (None: as many as it has).
        rounds: epochs of each, after one that warms up.
        quick: a smoke run: a few drawn images.
        out: folder for JSON, CSV and plots.
        as_json: print one JSON object on stdout, all else on stderr.

    Raises:
        ValueError: a value that cannot be, data that is not there, or a folder that cannot be written to.
    """
    harness.check_counts(**{"rounds": rounds, "threads": threads, "max-steps": max_steps, "batch-size": batch_size})
    harness.check_counts(agreement=agree)
    if quick:
        dataset, arch, batch_size, rounds = QUICK["dataset"], arch or QUICK["arch"], QUICK["batch_size"], 1
    report.check_folder(out)
    console, place = Console(stderr=as_json), pick_device(device)
    given = {"batch_size": batch_size, "data_dir": data_dir, "workers": pick_workers(workers, place)}
    given |= {"precision": precision, "device": str(place), "compile": "off", "progressive": 0.0}
    values = recipe(dataset, arch, method) | {name: value for name, value in given.items() if value is not None}
    config = settle(TrainConfig(**values))
    with harness.threads(threads):
        about = machine.describe(place)
        report.print_machine(console, about)
        data = open_data(config, console)
        try:
            comparison, sides = measure(config, data, max_steps, rounds, console)
            comparisons, answer = [comparison], _answer(comparison, sides)
            if agree:
                found = agreement.compare(config, data, agree, console)
                agreement.write(found, out, f"{config.arch} {config.method}, {config.dataset}, {about['cpu']}")
                comparisons.append(found.comparison())
                answer["agreement"] = found.summary()
                rows = [[name, f"{found.gap(name):.3%}", f"{found.last(name):.4g}"] for name in found.losses]
                title = f"losses over {agree} steps on the same batches: moving mean's distance from the reference's"
                report.print_rows(console, title, ["run", "distance", "last loss"], rows)
        finally:
            data.close()
    report.plot_bars(out / "epoch.png", [comparison], f"An epoch, {about['gpu'] or about['cpu']}")
    settings = {
        name: getattr(config, name) for name in ("dataset", "arch", "method", "batch_size", "loader", "precision")
    }
    settings |= {
        "workers": config.workers,
        "max_steps": max_steps,
        "rounds": rounds,
        "device": str(place),
        "quick": quick,
    }
    return report.conclude(
        "epoch", comparisons, marks=_marks(comparison, sides), machine=about, settings=settings, folder=out,
        console=console, as_json=as_json, answer=answer,
    )  # fmt: skip


def measure(
    config: TrainConfig, data: LoadedData, max_steps: int | None, rounds: int, console: Console
) -> tuple[Comparison, dict[str, Epochs]]:
    """Epochs of the engine and of the reference in turns, once their steps were found right."""
    classes, device = len(data.classes), torch.device(config.device)
    label = f"{config.arch} {config.method} {config.dataset} batch {config.batch_size}"
    console.print(f"\n{label}: checking the steps against float64", highlight=False, markup=False)
    yard = Yard(config, classes)
    engine, reference = yard.engine(config), yard.reference()
    failures = {"fastdhm": harness.failure(lambda: yard.judge_engine(engine)), "reference": yard.judge_reference()}
    for one in (engine.run, reference):
        one.set_learning_rate(config.lr)
    loader = training_loader(config, config.workers)
    sides = {name: Epochs() for name in failures}
    runs = {
        "fastdhm": lambda: engine_epoch(engine, data, max_steps, sides["fastdhm"]),
        "reference": lambda: reference_epoch(reference, loader, max_steps, sides["reference"]),
    }
    expected = config.batch_size * min(len(data.train), max_steps or len(data.train))
    results = {name: Result(failure=failure) for name, failure in failures.items()}
    for number in range(1 + rounds):
        for name, run in runs.items():
            if results[name].failure is None:
                seconds = _timed(run, device)
                sides[name].seconds.append(seconds)
                if sides[name].images[-1] != expected:
                    results[name].failure = f"an epoch had {sides[name].images[-1]} images, must have {expected}"
                elif number:  # the first warms up
                    results[name].samples_ms.append(1e3 * seconds)
                    results[name].calls_per_sample = 1
    for result in results.values():
        result.peak_bytes = None
        if result.failure:
            result.samples_ms.clear()
    comparison = Comparison(label=label, results=results)
    report.print_comparison(console, comparison)
    return comparison, sides


def engine_epoch(engine: Engine, data: LoadedData, max_steps: int | None, side: Epochs) -> None:
    """An epoch of the engine, with what a log point reads at its end."""
    seen, at, timer = 0, engine.run.at, Timer(engine.run.at.step)
    with timer.feed(data.train, at.epoch, 0, engine.run.device) as batches:
        for batch in islice(batches, max_steps):
            engine.train(batch)
            seen += len(batch.target_B)
    engine.run.sums.read_interval()
    at.epoch += 1
    side.waited.append(timer.waited)
    side.images.append(seen)


def reference_epoch(reference: Reference, loader, max_steps: int | None, side: Epochs) -> None:
    """An epoch of the reference."""
    seen, waited = 0, Waited(loader)
    for image_BCHW, target_B in islice(waited, max_steps):
        reference.step(image_BCHW, target_B)
        seen += len(target_B)
    side.waited.append(waited.seconds)
    side.images.append(seen)


def _timed(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _answer(comparison: Comparison, sides: dict[str, Epochs]) -> dict[str, object]:
    """Of both: images a second and the share of an epoch that the loop waits for data; and the speedup."""
    answer: dict[str, object] = {}
    for name, side in sides.items():
        time_ms = comparison.time_ms(name)
        answer[f"{name}_images_per_s"] = 1e3 * side.images[-1] / time_ms.median if time_ms else None
        answer[f"{name}_data_wait"] = _wait_share(side).median / 100 if time_ms else None
    speedup = comparison.ratio("reference", "fastdhm")
    return answer | {"speedup": speedup.median if speedup else None}


def _wait_share(side: Epochs) -> harness.Spread:
    """Percent of an epoch that the loop waited for data, the first one left out."""
    pairs = list(zip(side.waited, side.seconds, strict=True))
    return spread([100 * waited / seconds for waited, seconds in pairs[1:]])


def _marks(comparison: Comparison, sides: dict[str, Epochs]) -> list[report.Mark]:
    where, ratio = comparison.label, comparison.ratio("reference", "fastdhm")
    marks = [report.Mark(name="reference over fastdhm", where=where, value=ratio)] if ratio else []
    for name, side in sides.items():
        time_ms = comparison.time_ms(name)
        if time_ms:
            rates = [1e3 * side.images[-1] / ms for ms in comparison.results[name].samples_ms]
            marks.append(report.Mark(name=f"{name}", where=where, value=spread(rates), unit="images/s"))
            marks.append(report.Mark(name=f"{name} waits for data", where=where, value=_wait_share(side), unit="%"))
    return marks
