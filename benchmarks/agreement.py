"""Whether the fast path trains like the eager float32 reference: compares the losses step by step.

All trainings start from the same weights and take the same batches: the reference, the engine as it trains, the engine
in float32, and plain torch in the engine's number format and layout. Because of rounding, any two trainings and their
single losses differ after a few dozen steps. Their moving means must stay together as closely as plain torch's in that
format stays with float32.

Legend: B batch, C channels, H height, W width.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdhm.benchmarks.harness import report
from fastdhm.benchmarks.harness.timing import Comparison, Result
from fastdhm.benchmarks.reference.contender import Engine
from fastdhm.benchmarks.reference.model import Reference
from fastdhm.config import TrainConfig
from fastdhm.data import LoadedData
from fastdhm.engine.build import build_model
from fastdhm.engine.device import placed
from fastdhm.engine.saved.record import to_host
from fastdhm.system.console import Console
from fastdhm.system.files import write_csv

WINDOWS = 20  # a moving mean is over steps / WINDOWS steps
SLACK = 3.0  # limit, in multiples of plain torch's distance from float32 in that format
FLOOR = 0.02  # part of the loss by which batch noise alone separates two seeds, in any format


@dataclass(frozen=True)
class Agreement:
    """The losses of every step by name, ``reference`` first."""

    losses: dict[str, list[float]]

    def gap(self, name: str) -> float:
        """Mean distance of a curve's moving mean from the reference's, as a part of the reference's mean."""
        ours, theirs = (moving_mean(self.losses[which]) for which in (name, "reference"))
        return ((ours - theirs).abs().mean() / theirs.mean()).item()

    def last(self, name: str) -> float:
        """The mean loss of a curve's last part."""
        return moving_mean(self.losses[name])[-1].item()

    def failure(self, name: str) -> str | None:
        """What is wrong with a curve, or None."""
        limit = max(SLACK * self.gap("plain"), FLOOR)
        gap = self.gap(name)
        if gap <= limit:  # written so that NaN is wrong
            return None
        return f"its losses are {gap:.2%} away from the reference's; the number format explains at most {limit:.2%}"

    def comparison(self) -> Comparison:
        """The verdicts as a comparison without times, so that a failure counts."""
        names = [name for name in self.losses if name not in ("reference", "plain")]
        results = {f"losses of {name}": Result(failure=self.failure(name), peak_bytes=None) for name in names}
        return Comparison(label=f"losses over {len(self.losses['reference'])} steps", results=results)

    def show(self, console: Console) -> None:
        """A table of the distances."""
        rows = [[name, f"{self.gap(name):.3%}", f"{self.last(name):.4g}"] for name in self.losses]
        steps = len(self.losses["reference"])
        title = f"losses over {steps} steps on the same batches: distance of the moving mean from the reference's"
        report.print_rows(console, title, ["run", "distance", "last loss"], rows)

    def summary(self) -> dict[str, object]:
        """For the record: the gaps, and the mean losses of the last part."""
        last = {name: self.last(name) for name in self.losses}
        gaps = {name: self.gap(name) for name in self.losses if name != "reference"}
        return {"steps": len(self.losses["reference"]), "gap": gaps, "last_loss": last}


def compare(config: TrainConfig, data: LoadedData, steps: int, console: Console) -> Agreement:
    """Train every side for ``steps`` steps by the run's recipe."""
    console.print(f"\ntraining on the same {steps} batches")
    classes, device = len(data.classes), torch.device(config.device)
    torch.manual_seed(config.seed)
    weights = build_model(config, classes).state_dict()
    references = {
        "reference": _reference(config, classes, device, weights, torch.float32, torch.contiguous_format),
        "plain": _reference(config, classes, device, weights, getattr(torch, config.precision), torch.channels_last),
    }
    engines = {"fastdhm": Engine(config, classes)}
    if config.precision != "float32":
        engines["fastdhm float32"] = Engine(dataclasses.replace(config, precision="float32"), classes)
    for engine in engines.values():
        engine.run.model.load_state_dict(weights)
        engine.run.learn_from(data)
    losses: dict[str, list] = {name: [] for name in (*references, *engines)}
    for number, batch in zip(range(steps), _batches(data, steps), strict=False):
        now = number / len(data.train)
        run = engines["fastdhm"].run
        lr, scale, _ = run.scheduled(now)
        for engine in engines.values():
            engine.run.at.epoch = run.at.epoch = number // len(data.train)
            if number % len(data.train) == 0:
                engine.run.begin_epoch()
        image_BCHW, labels = run.prepare(batch, run.at.epoch, run.side)
        for name, reference in references.items():
            reference.set_learning_rate(lr)
            layout = torch.contiguous_format if name == "reference" else torch.channels_last
            logged = reference.step(image_BCHW.contiguous(memory_format=layout), labels.target_B, scale)
            losses[name].append(reference.loss(logged, scale))
        for name, engine in engines.items():
            engine.run.set_learning_rate(lr)
            losses[name].append(engine.train(batch, scale))
    host = {name: to_host(torch.stack(values)) for name, values in losses.items() if name in engines}
    return Agreement(losses | host)


def _reference(
    config: TrainConfig, classes: int, device: torch.device, weights: dict, precision: torch.dtype, layout
) -> Reference:
    model = build_model(config, classes)
    model.load_state_dict(weights)
    return Reference(placed(model, device, layout), config, device, precision=precision)


def _batches(data: LoadedData, steps: int):
    """The engine's own training batches, over as many epochs as needed."""
    for epoch in range(-(-steps // len(data.train))):
        with data.train.epoch(epoch) as batches:
            yield from batches


def moving_mean(losses: list[float]) -> torch.Tensor:
    """Means over windows of a ``WINDOWS``-th of the steps."""
    window = max(1, len(losses) // WINDOWS)
    return torch.tensor(losses, dtype=torch.float64).unfold(0, window, 1).mean(-1)


def write(found: Agreement, folder: Path, title: str) -> None:
    """``agreement.csv``, a row for each step, and ``agreement.png``, the moving means."""
    rows = ([step, *row] for step, row in enumerate(zip(*found.losses.values(), strict=True), 1))
    write_csv(folder / "agreement.csv", ["step", *found.losses], rows)
    curves = {name: moving_mean(losses).tolist() for name, losses in found.losses.items()}
    report.plot_curves(folder / "agreement.png", curves, title, "step", "loss, moving mean")
