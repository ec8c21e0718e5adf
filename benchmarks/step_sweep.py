"""``fastdhm bench step --sweep``: images per second over batch sizes and threads, against torch's own fast settings.

``plain`` is the reference with what torch offers: autocast in the engine's number format (unless that is float32) and
channels last. The mark is the point where the engine gains least.

Legend: B batch.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch

from fastdhm import models
from fastdhm.benchmarks.harness import report
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.benchmarks.harness.frame import Frame
from fastdhm.benchmarks.harness.timing import Comparison, Peer
from fastdhm.benchmarks.reference.contender import random_batch
from fastdhm.benchmarks.reference.same_step import FREE_SHARE, Yard, room
from fastdhm.config import TrainConfig
from fastdhm.data.loaders.crops import height_width
from fastdhm.engine.device import placed
from fastdhm.system import processors

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CHECKED = 8  # images on which the steps are found right, as float64 is slow
POINT_SECONDS = 8.0  # of the rounds of one point
LONGEST_S = 20.0  # larger batches are left out after a step as long as this


def bench(frame: Frame, configs: Sequence[TrainConfig], settings: Mapping[str, object]) -> int:
    """Sweep each network; returns the exit status. What is measured is kept if the rest is stopped."""
    swept: list[Comparison] = []
    with frame.measuring():
        for config in configs:
            for comparison in sweep(frame, config):
                swept.append(comparison)
                frame.write(swept, marks=least_gain(swept), settings=settings)
    return frame.conclude(swept, marks=least_gain(swept), settings=settings, answer={})


def sweep(frame: Frame, config: TrainConfig) -> Iterator[Comparison]:
    """A comparison for each batch size and number of threads, and a plot of their images per second."""
    height, width = height_width(config.image_size)
    name, numbers = f"{config.arch} {config.method} {height}x{width}", _thread_counts(frame)
    frame.say(f"\n{name}: checking the steps against float64")
    peers = _Peers(config)
    sizes = [size for size in BATCH_SIZES if size <= peers.most]
    if len(sizes) < len(BATCH_SIZES):
        frame.say(f"left out: batches over {sizes[-1]}, which do not fit into the free memory")
    found: dict[tuple[int, int], Comparison] = {}
    for threads in numbers:
        with harness.threads(threads):
            for size in sizes[:2] if frame.quick else sizes:
                label = f"{name} batch {size}, {threads} thread{'s' * (threads > 1)}"
                compared = frame.compare(label, peers.of(size), max_seconds=POINT_SECONDS, memory=False)
                found[threads, size] = compared
                yield compared
                slowest = max((compared.median_ms(peer) or 0 for peer in compared.results), default=0)
                if slowest > 1e3 * LONGEST_S and size < sizes[-1]:
                    frame.say(f"left out: larger batches, as a step takes {slowest / 1e3:.0f} s")
                    break
    curves = {
        f"{peer}, {threads} thread{'s' * (threads > 1)}": [
            (size, 1e3 * size / ms)
            for (other, size), compared in found.items()
            if other == threads and (ms := compared.median_ms(peer))
        ]
        for threads, peer in itertools.product(numbers, ("fastdhm", "plain"))
    }
    path = frame.out / f"step_sweep_{config.arch}.png"
    report.plot_rates(path, curves, f"Training step, {name}", "images in a step", "images per second")


def least_gain(comparisons: list[Comparison]) -> list[report.Mark]:
    """Of each network, the point where plain torch comes closest."""
    marks = report.ratio_marks(comparisons, {"plain over fastdhm, least": ("plain", "fastdhm")})
    networks = dict.fromkeys(mark.where.partition(" batch ")[0] for mark in marks)
    return [
        min((mark for mark in marks if mark.where.startswith(f"{name} ")), key=lambda mark: mark.value.median)
        for name in networks
    ]


def _thread_counts(frame: Frame) -> list[int]:
    """1, 2, 4 and so on to all; those that the user named, if any."""
    if frame.threads is not None or frame.device.type != "cpu":
        return [frame.threads or torch.get_num_threads()]
    most = processors.count()
    return [*(2**n for n in range(most.bit_length()) if 2**n < most), most]


class _Peers:
    """The engine and plain torch at the same weights, for batches of any size."""

    def __init__(self, config: TrainConfig):
        self.config = dataclasses.replace(config, batch_size=CHECKED)
        self.classes = models.family_of(config.arch).num_classes
        yard = Yard(self.config, self.classes)
        free, needed = room(yard.model, config, yard.device, getattr(torch, config.precision).itemsize)
        self.most = BATCH_SIZES[-1] if free is None else max(1, int(FREE_SHARE * free / needed))
        self.engine = yard.engine(self.config)
        self.engine.run.num_views = BATCH_SIZES[-1]
        self.engine.run.begin_epoch()
        self.fault = yard.fault(self.engine)
        self.plain = yard.reference(precision=getattr(torch, config.precision))
        placed(self.plain.network, self.engine.run.device)

    def of(self, size: int) -> list[Peer]:
        """Both, for a batch of this size."""
        batch = random_batch(dataclasses.replace(self.config, batch_size=size), self.classes)
        images = batch.image_BHWC.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last).float() / 255
        batch = batch.to(self.engine.run.device)

        def step() -> dict[str, torch.Tensor]:
            return {"loss": self.engine.train(batch)}

        def plain() -> dict[str, torch.Tensor]:
            return {"loss": torch.tensor(list(self.plain.step(images, batch.target_B).values()))}

        def check(result: dict[str, torch.Tensor]) -> str | None:
            return None if result["loss"].isfinite().all() else "the loss is not finite"

        return [
            Peer(name="fastdhm", run=step, check=lambda result: self.fault or check(result)),
            Peer(name="plain", run=plain, check=check),
        ]
