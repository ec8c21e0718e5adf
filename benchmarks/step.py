"""``fastdhm bench step``: a training step of the engine against one of the eager reference, checked first.

Peers, each a whole step from a batch to the updated weights:

- ``fastdhm``    what ``fastdhm train`` does with a batch of bytes, with augmentation and the run's sums;
- ``reference``  what the released code does, on images that are already floats: float32, NCHW, 15 waits for logs;
- ``baseline``   the engine's step without branches or mimicking: shows the cost of DHM in the same engine;
- ``autocast``   the reference in the engine's number format (unless float32) and channels last: shows the effect of
                 these two only;
- ``eager``      the engine without torch.compile, if it compiles;
- ``graphed``    the engine with its step as a CUDA graph, on a GPU.

All run in one process. So the engine's setting for it (the C library keeps freed memory) helps the reference too.

Legend: B batch, C channels, H height, W width.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastdhm import models
from fastdhm.benchmarks import step_sweep
from fastdhm.benchmarks.harness import breakdown, energy, report
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.benchmarks.harness.frame import Frame, check_counts, check_value
from fastdhm.benchmarks.harness.timing import Comparison, Peer, Spread
from fastdhm.benchmarks.reference.contender import Engine, make_config, random_batch
from fastdhm.benchmarks.reference.model import Reference
from fastdhm.benchmarks.reference.same_step import Yard
from fastdhm.config import TrainConfig
from fastdhm.data.loaders.crops import height_width
from fastdhm.data.loaders.loader import Batch
from fastdhm.engine.device import placed
from fastdhm.errors import UserError

MAX_SECONDS = 240  # of the rounds of one comparison
ENERGY_STEPS, ENERGY_SECONDS = 5, 2.0  # at least this many steps, and on a GPU this long: its counter moves slowly
GPU_SAMPLE_SECONDS = 0.1  # several steps, as the host runs ahead of a GPU in training
PEERS = ("fastdhm", "graphed", "reference", "baseline", "autocast", "eager")
MARKS = {
    "reference over fastdhm": ("reference", "fastdhm"),
    "autocast over fastdhm": ("autocast", "fastdhm"),
    "fastdhm over baseline": ("fastdhm", "baseline"),
    "eager over compiled": ("eager", "fastdhm"),
    "reference over graphed": ("reference", "graphed"),
    "fastdhm over graphed": ("fastdhm", "graphed"),
}


def bench(
    frame: Frame,
    *,
    archs: Sequence[str],
    image_size: int | None,
    batch_size: int | None,
    method: str,
    precision: str,
    compile: str,
    smoothing: float,
    peers: str | None,
    sweep: bool,
) -> int:
    """Time all of it; returns the exit status, 1 if a step was not the right one.

    Args:
        archs: networks, one comparison each.
        image_size: side in pixels (None: the paper's).
        batch_size: images per step (None: 128 small ones or 32 large ones).
        method: dhm, dsl or baseline, of both.
        precision: of the engine; the reference is float32.
        compile: on, off, or auto: as in a long run. Compiling a network can take minutes.
        smoothing: of the reference's mimicking terms; the released code has 1e-8.
        peers: which to time besides ``fastdhm``, separated by commas (None: all).
        sweep: time batches of 1 to 512 images and all numbers of threads instead, against torch's autocast.

    Raises:
        ValueError: a value out of range, a network that does not fit into memory, or a folder that is not writable.
    """
    check_counts(image_size=image_size, batch_size=batch_size)
    if not 0 <= smoothing < 1:
        raise UserError(f"--smoothing is {smoothing}: must be in [0, 1); the released code has 1e-8")
    check_value("compile", compile, ("off", "on", "auto"))
    for name in () if peers is None else peers.split(","):
        check_value("peers", name, PEERS)
    given = {"method": method, "precision": precision, "compile": compile, "device": str(frame.device)}
    configs = [make_config(arch, image_size, batch_size, **given) for arch in archs]
    if sweep:
        return step_sweep.bench(frame, configs, {"archs": list(archs), "image_size": image_size, **given})
    with frame.measuring():
        wanted = PEERS if peers is None else ("fastdhm", *peers.split(","))
        measured = [measure(frame, config, smoothing, wanted) for config in configs]
    comparisons = [comparison for comparison, _ in measured]
    frame.plot_bars(comparisons, "Training step")
    profiles = {f"{c.label}\n{name}": spent for c, extra in measured for name, spent in extra["profile_ms"].items()}
    if profiles:
        title = f"Training step, {frame.where}: where it goes"
        report.plot_stacks(frame.out / "step_profile.png", profiles, title, "milliseconds a step")
    settings = {"archs": list(archs), "image_size": image_size, "batch_size": batch_size, **given}
    return frame.conclude(
        comparisons,
        marks=[mark for comparison, extra in measured for mark in _marks(comparison, extra)],
        settings=settings | {"precision": configs[0].precision, "smoothing": smoothing},
        answer=_answer(comparisons[0]) | {"steps": [extra for _, extra in measured]},
    )


def measure(
    frame: Frame, config: TrainConfig, smoothing: float, wanted: Sequence[str] = PEERS
) -> tuple[Comparison, dict]:
    """The comparison for one network, and other facts of its step: work, memory, energy, profile."""
    num_classes, (height, width) = models.family_of(config.arch).num_classes, height_width(config.image_size)
    label = f"{config.arch} {config.method} {height}x{width} batch {config.batch_size}"
    frame.say(f"\n{label}: checking the steps against float64")
    peers = make_peers(frame, config, num_classes, smoothing, wanted)
    on_gpu = frame.device.type == "cuda"
    sample = {"min_sample_seconds": GPU_SAMPLE_SECONDS} if on_gpu else {}
    comparison = frame.compare(label, peers, max_seconds=MAX_SECONDS, **sample)
    macs = models.inventory(config.arch, num_classes, (height, width), _branches(config)).branches
    right = {peer.name: peer.run for peer in peers if comparison.results[peer.name].failure is None}
    formats = dict.fromkeys((torch.float32, getattr(torch, config.precision)))
    extra = {
        "label": label,
        **_answer(comparison),
        # forward, and for each layer the gradients of its input and of its weights
        "gflop": 6 * config.batch_size * sum(cost.macs for cost in macs.values()) / 1e9,
        "matmul_tflops": {
            str(dtype).removeprefix("torch."): breakdown.matmul_peak(frame.device, dtype) / 1e12 for dtype in formats
        },
        "peak_mib": {name: result.peak_mib for name, result in comparison.results.items()},
        "joules": {
            name: energy.joules(run, _energy_steps(comparison, name, on_gpu), frame.device) or energy.NOT_TOLD
            for name, run in right.items()
        },
        "profile_ms": {
            name: breakdown.profile_step(right[name], frame.device)
            for name in ("fastdhm", "reference")
            if name in right
        },
    }
    print_extra(frame, extra, config.precision)
    return comparison, extra


def _energy_steps(comparison: Comparison, name: str, on_gpu: bool) -> int:
    median_ms = comparison.median_ms(name)
    assert median_ms is not None  # of a peer that is right
    return max(ENERGY_STEPS, on_gpu * math.ceil(1e3 * ENERGY_SECONDS / median_ms))


def make_peers(
    frame: Frame, config: TrainConfig, num_classes: int, smoothing: float, wanted: Sequence[str]
) -> list[Peer]:
    """The ``wanted`` peers, ``fastdhm`` first; :class:`Yard` has checked each over some steps."""
    yard = Yard(config, num_classes)
    if yard.images < config.batch_size:
        frame.say(f"checked on {yard.images} of {config.batch_size} images, as float64 has memory for no more")
    batch = random_batch(config, num_classes)
    image_BCHW, target_B = _float_images(config, batch)
    if frame.device.type == "cuda":  # where a run's loaders put it before the step
        batch = batch.to(frame.device)
    engine = yard.engine(config)
    peers = [_engine_peer("fastdhm", engine, yard, batch)]
    if "graphed" in wanted and frame.device.type == "cuda":
        peers.append(_engine_peer("graphed", yard.engine(dataclasses.replace(config, cuda_graphs=True)), yard, batch))
    if "reference" in wanted:
        reference = yard.reference(smoothing=smoothing)
        peers.append(_reference_peer("reference", reference, image_BCHW, target_B, yard.judge_reference()))
    if "baseline" in wanted and config.method != "baseline":
        plain = dataclasses.replace(config, method="baseline")
        plain_yard = Yard(plain, num_classes)
        peers.append(_engine_peer("baseline", plain_yard.engine(plain), plain_yard, batch))
    if "autocast" in wanted and config.precision != "float32":
        same = yard.reference(smoothing=smoothing, precision=getattr(torch, config.precision))
        placed(same.network, frame.device)
        image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        peers.append(_reference_peer("autocast", same, image_BCHW, target_B, None))
    if "eager" in wanted and engine.compiled:
        peers.append(_engine_peer("eager", yard.engine(dataclasses.replace(config, compile="off")), yard, batch))
    return peers


def _engine_peer(name: str, engine: Engine, yard: Yard, batch: Batch) -> Peer:
    return Peer(name=name, run=lambda: {"loss": engine.train(batch)}, check=_sound(yard.fault(engine)))


def _reference_peer(name: str, reference: Reference, image_BCHW: Tensor, target_B: Tensor, failure: str | None) -> Peer:
    def run() -> dict[str, Tensor]:
        return {"loss": torch.tensor(list(reference.step(image_BCHW, target_B).values()))}

    def check(result: dict[str, Tensor]) -> str | None:
        used = sorted(name for name in harness.ops_called(run) if name.startswith("fastdhm::"))
        return f"is no reference: it calls {', '.join(used)}" if used else _sound(failure)(result)

    return Peer(name=name, run=run, check=check)


def _sound(failure: str | None) -> Callable[[dict[str, Tensor]], str | None]:
    """A check that reports the earlier ``failure``, or a NaN in the timed result."""
    return lambda result: failure or (None if result["loss"].isfinite().all() else "the loss is not finite")


def _float_images(config: TrainConfig, batch: Batch) -> tuple[Tensor, Tensor]:
    """The batch as a ``DataLoader`` gives it: floats of about unit size, NCHW, in host memory."""
    image_BCHW = batch.image_BHWC.permute(0, 3, 1, 2).contiguous().float() / 255
    mean_C11, std_C11 = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    return (image_BCHW - mean_C11) / std_C11, batch.target_B


def print_extra(frame: Frame, extra: dict, precision: str) -> None:
    """Print the limits of a step: its arithmetic at the measured peak, its energy, and where its time goes."""
    peaks = ", ".join(f"{name} {tflops:.3g}" for name, tflops in extra["matmul_tflops"].items())
    floor_ms = extra["gflop"] / extra["matmul_tflops"][precision]
    frame.say(
        f"{extra['gflop']:.3g} GFLOP a step; matrix products reach {peaks} TFLOP/s here: {floor_ms:.3g} ms at least"
    )
    told = {name: value for name, value in extra["joules"].items() if not isinstance(value, str)}
    energies = ", ".join(f"{name} {value:.3g} J" for name, value in told.items())
    frame.say(f"energy a step: {energies or energy.NOT_TOLD}")
    profiles = extra["profile_ms"]
    rows = [
        [kind, *(f"{spent[kind]:.3g} ms ({spent[kind] / sum(spent.values()):.0%})" for spent in profiles.values())]
        for kind in breakdown.KINDS
    ]
    if profiles:
        report.print_rows(frame.console, "where a step's time goes, under the profiler", ["work", *profiles], rows)


def _branches(config: TrainConfig) -> tuple[str, ...] | None:
    return () if config.method == "baseline" else config.branches


def _answer(comparison: Comparison) -> dict[str, float | None]:
    """Both medians, and the median of their ratios per round; None if one has no time."""
    medians = {f"{name}_ms": comparison.median_ms(name) for name in ("fastdhm", "reference")}
    return medians | {"speedup": comparison.speedup("reference", "fastdhm")}


def _marks(comparison: Comparison, extra: dict) -> list[report.Mark]:
    marks = report.ratio_marks([comparison], MARKS)
    time_ms = comparison.time_ms("fastdhm")
    if time_ms:
        peak = extra["gflop"] / list(extra["matmul_tflops"].values())[-1]  # GFLOP over TFLOP/s is milliseconds
        reached = Spread(*(100 * peak / ms for ms in (time_ms.median, time_ms.high, time_ms.low)))
        marks.append(report.Mark(name="of the matrix peak", where=comparison.label, value=reached, unit="%"))
    return marks
