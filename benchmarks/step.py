"""``fastdhm bench step``: a training step of the engine against one of the eager reference, checked first.

Peers, each a whole step from a batch to the updated weights:

- ``fastdhm``    what ``fastdhm train`` does with a batch of bytes, augmentation and the run's sums included;
- ``reference``  the released code's way, on images that are floats already: float32, NCHW, 15 waits for logged numbers;
- ``baseline``   the engine's step without branches or mimicking: what DHM costs within the same engine;
- ``autocast``   the reference in the engine's number format and channels last, where that is not float32: what these
                 two give alone;
- ``eager``      the engine without torch.compile, where it compiles.

All run in one process, so what the engine sets for it (that the C library keeps freed memory) the reference has too.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from fastdhm import models
from fastdhm.benchmarks import breakdown, energy, harness, machine, report
from fastdhm.benchmarks.contender import Engine, make_config, random_batch
from fastdhm.benchmarks.harness import Comparison, Peer, Spread
from fastdhm.benchmarks.reference import Reference
from fastdhm.benchmarks.same_step import Yard
from fastdhm.config import TrainConfig
from fastdhm.data.crops import height_width
from fastdhm.data.loaders import Batch
from fastdhm.engine.device import pick_device
from fastdhm.errors import UserError, unknown

ARCHS = ("resnet32",)
QUICK = {"archs": ("resnet8",), "image_size": 16, "batch_size": 8}
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
MAX_SECONDS = 240  # of the rounds of one comparison
ENERGY_STEPS = 5


def bench(
    *,
    archs: Sequence[str] = (),
    image_size: int | None = None,
    batch_size: int | None = None,
    method: str = "dhm",
    precision: str = "auto",
    compile: str = "off",
    smoothing: float = 0.0,
    device: str = "auto",
    threads: int | None = None,
    rounds: int = 15,
    quick: bool = False,
    out: Path = Path("bench"),
    as_json: bool = False,
) -> int:
    """Measure, print and write all of it; returns the exit status, 1 if a step was not the right one.

    Args:
        archs: networks, one comparison each; none: ResNet-32.
        image_size: side in pixels (None: what the paper runs the network at).
        batch_size: images a step (None: 128 small ones or 32 large ones).
        method: dhm, dsl or baseline, of both.
        precision: of the engine; the reference is float32.
        compile: on, off, or auto: as in a long run. Compiling a network can take minutes.
        smoothing: of the reference's mimicking terms; the released code has 1e-8.
        device: auto, cpu, cuda or cuda:N.
        threads: of torch (None: as many as it has).
        rounds: samples of each peer.
        quick: a smoke run: one small network, few rounds.
        out: folder for JSON, CSV and plots.
        as_json: print one JSON object on stdout, all else on stderr.

    Raises:
        ValueError: a value that cannot be, a network that does not fit into memory, a folder that cannot be written to.
    """
    harness.check_counts(**{"rounds": rounds, "threads": threads, "image-size": image_size, "batch-size": batch_size})
    if not 0 <= smoothing < 1:
        raise UserError(f"--smoothing is {smoothing}: must be in [0, 1); the released code has 1e-8")
    for name, value, known in (("precision", precision, PRECISIONS), ("compile", compile, ("off", "on", "auto"))):
        if value not in known:
            raise unknown(f"value of --{name}", value, known)
    if quick:
        archs = archs or QUICK["archs"]
        image_size, batch_size = image_size or QUICK["image_size"], batch_size or QUICK["batch_size"]
        rounds = min(rounds, 3)
    given = {"method": method, "precision": precision, "compile": compile, "device": str(pick_device(device))}
    configs = [make_config(arch, image_size, batch_size, **given) for arch in archs or ARCHS]
    place, console = torch.device(configs[0].device), Console(stderr=as_json)
    report.check_folder(out)
    with harness.threads(threads):
        about = machine.describe(place)
        report.print_machine(console, about)
        measured = [measure(config, smoothing, rounds, console) for config in configs]
    comparisons = [comparison for comparison, _ in measured]
    extras = [extra for _, extra in measured]
    title = f"Training step, {about['gpu'] or about['cpu']}"
    report.plot_bars(out / "step.png", comparisons, title)
    profiles = {f"{c.label}\n{name}": spent for c, extra in measured for name, spent in extra["profile_ms"].items()}
    if profiles:
        report.plot_stacks(out / "step_profile.png", profiles, f"{title}: where it goes", "milliseconds a step")
    marks = [mark for comparison, extra in measured for mark in _marks(comparison, extra)]
    settings = {
        "archs": [config.arch for config in configs], "image_size": image_size, "batch_size": batch_size,
        **given, "precision": configs[0].precision, "smoothing": smoothing, "rounds": rounds, "quick": quick,
    }  # fmt: skip
    return report.conclude(
        "step", comparisons, marks=marks, machine=about, settings=settings, folder=out, console=console,
        as_json=as_json, answer=_answer(comparisons[0]) | {"steps": extras},
    )  # fmt: skip


def measure(config: TrainConfig, smoothing: float, rounds: int, console: Console) -> tuple[Comparison, dict]:
    """The comparison for one network, and what else is known of its step: work, memory, energy, profile."""
    device, num_classes = torch.device(config.device), models.family_of(config.arch).num_classes
    height, width = height_width(config.image_size)
    label = f"{config.arch} {config.method} {height}x{width} batch {config.batch_size}"
    console.print(f"\n{label}: checking the steps against float64", highlight=False, markup=False)
    peers = make_peers(config, num_classes, smoothing, console)
    comparison = harness.measure(label, peers, device=device, rounds=rounds, max_seconds=MAX_SECONDS)
    report.print_comparison(console, comparison)
    macs = models.inventory(config.arch, num_classes, (height, width), _branches(config)).branches
    right = {peer.name: peer.run for peer in peers if comparison.results[peer.name].failure is None}
    dtype = getattr(torch, config.precision)
    extra = {
        "label": label,
        **_answer(comparison),
        # forward, and for each layer the gradients of its input and of its weights
        "gflop": 6 * config.batch_size * sum(cost.macs for cost in macs.values()) / 1e9,
        "matmul_tflops": {
            str(kind).removeprefix("torch."): breakdown.matmul_peak(device, kind) / 1e12
            for kind in dict.fromkeys((torch.float32, dtype))
        },
        "peak_mib": {name: result.peak_bytes / report.MIB for name, result in comparison.results.items()},
        "joules": {name: energy.joules(run, ENERGY_STEPS, device) or energy.NOT_TOLD for name, run in right.items()},
        "profile_ms": {
            name: breakdown.profile_step(right[name], device) for name in ("fastdhm", "reference") if name in right
        },
    }
    print_extra(console, extra, config.precision)
    return comparison, extra


def make_peers(config: TrainConfig, num_classes: int, smoothing: float, console: Console) -> list[Peer]:
    """Every peer, ``fastdhm`` first; each has been judged by :class:`Yard` and stands some steps into a run."""
    yard = Yard(config, num_classes)
    if yard.images < config.batch_size:
        console.print(f"checked on {yard.images} of {config.batch_size} images, which is what float64 has memory for")
    batch = random_batch(config, num_classes)
    engine = yard.engine(config)
    peers = [_engine_peer("fastdhm", engine, yard, batch)]
    reference = yard.reference(smoothing=smoothing)
    image_BCHW, target_B = _float_images(config, batch)
    peers.append(_reference_peer("reference", reference, image_BCHW, target_B, yard.judge_reference()))
    if config.method != "baseline":
        plain = dataclasses.replace(config, method="baseline")
        plain_yard = Yard(plain, num_classes)
        peers.append(_engine_peer("baseline", plain_yard.engine(plain), plain_yard, batch))
    if config.precision != "float32":
        same = yard.reference(smoothing=smoothing, precision=getattr(torch, config.precision))
        same.network.to(memory_format=torch.channels_last)
        image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        peers.append(_reference_peer("autocast", same, image_BCHW, target_B, None))
    if engine.compiled:
        peers.append(_engine_peer("eager", yard.engine(dataclasses.replace(config, compile="off")), yard, batch))
    return peers


def _engine_peer(name: str, engine: Engine, yard: Yard, batch: Batch) -> Peer:
    """An engine that ``yard`` made. Its float32 form is judged first: in a narrow type, rounding hides much."""
    config, failure = engine.run.config, None
    if config.precision != "float32":
        wide = yard.engine(dataclasses.replace(config, precision="float32", compile="off"))
        failure = harness.failure(lambda: yard.judge_engine(wide))
    failure = failure or harness.failure(lambda: yard.judge_engine(engine))
    return Peer(name=name, run=lambda: {"loss": engine.train(batch)}, check=_sound(failure))


def _reference_peer(name: str, reference: Reference, image_BCHW: Tensor, target_B: Tensor, failure: str | None) -> Peer:
    def run() -> dict[str, Tensor]:
        return {"loss": torch.tensor(list(reference.step(image_BCHW, target_B).values()))}

    def check(result: dict[str, Tensor]) -> str | None:
        used = sorted(name for name in harness.ops_called(run) if name.startswith("fastdhm::"))
        return f"is no reference: it calls {', '.join(used)}" if used else _sound(failure)(result)

    return Peer(name=name, run=run, check=check)


def _sound(failure: str | None) -> Callable[[dict[str, Tensor]], str | None]:
    """A check that passes on what was found before, and that what is timed is no NaN."""
    return lambda result: failure or (None if result["loss"].isfinite().all() else "the loss is not finite")


def _float_images(config: TrainConfig, batch: Batch) -> tuple[Tensor, Tensor]:
    """The batch as a ``DataLoader`` would hand it out: floats of about unit size, NCHW, in host memory."""
    image_BCHW = batch.image_BHWC.permute(0, 3, 1, 2).contiguous().float() / 255
    mean_C11, std_C11 = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    return (image_BCHW - mean_C11) / std_C11, batch.target_B


def print_extra(console: Console, extra: dict, precision: str) -> None:
    """What bounds the step: its arithmetic at the measured peak, energy, and where its time goes."""
    peaks = ", ".join(f"{name} {tflops:.3g}" for name, tflops in extra["matmul_tflops"].items())
    floor_ms = extra["gflop"] / extra["matmul_tflops"][precision]
    lines = [
        f"{extra['gflop']:.3g} GFLOP a step; matrix products reach {peaks} TFLOP/s here: {floor_ms:.3g} ms at least"
    ]
    told = {name: value for name, value in extra["joules"].items() if not isinstance(value, str)}
    energies = ", ".join(f"{name} {value:.3g} J" for name, value in told.items())
    lines.append(f"energy a step: {energies or energy.NOT_TOLD}")
    console.print("\n".join(lines), highlight=False, markup=False)
    names = list(extra["profile_ms"])
    totals = {name: sum(spent.values()) for name, spent in extra["profile_ms"].items()}
    rows = [
        [
            kind,
            *(
                f"{extra['profile_ms'][name][kind]:.3g} ms ({extra['profile_ms'][name][kind] / totals[name]:.0%})"
                for name in names
            ),
        ]
        for kind in breakdown.KINDS
    ]
    if names:
        report.print_rows(console, "where a step's time goes, under the profiler", ["work", *names], rows)


def _branches(config: TrainConfig) -> tuple[str, ...] | None:
    return () if config.method == "baseline" else config.branches


def _answer(comparison: Comparison) -> dict[str, float | None]:
    """Both medians, and the median of their ratios in each round; None where one has no time."""
    times = {name: comparison.time_ms(name) for name in ("fastdhm", "reference")}
    speedup = comparison.ratio("reference", "fastdhm")
    medians = {f"{name}_ms": time.median if time else None for name, time in times.items()}
    return medians | {"speedup": speedup.median if speedup else None}


def _marks(comparison: Comparison, extra: dict) -> list[report.Mark]:
    ratios = {
        "reference over fastdhm": comparison.ratio("reference", "fastdhm"),
        "autocast over fastdhm": comparison.ratio("autocast", "fastdhm"),
        "fastdhm over baseline": comparison.ratio("fastdhm", "baseline"),
        "eager over compiled": comparison.ratio("eager", "fastdhm"),
    }
    marks = [report.Mark(name=name, where=comparison.label, value=ratio) for name, ratio in ratios.items() if ratio]
    time_ms = comparison.time_ms("fastdhm")
    if time_ms:
        peak = extra["gflop"] / list(extra["matmul_tflops"].values())[-1]  # GFLOP over TFLOP/s is milliseconds
        reached = Spread(*(100 * peak / ms for ms in (time_ms.median, time_ms.high, time_ms.low)))
        marks.append(report.Mark(name="of the matrix peak", where=comparison.label, value=reached, unit="%"))
    return marks
