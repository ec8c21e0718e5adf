"""``fastdhm bench loader``: images per second, from files to batches, against torchvision's ``ImageFolder``.

Photographs are JPEG files: noise of 500x375 pixels on a background whose colour is the class. They are cropped at
random to 224 pixels. ``ffcv jpg 500``, ``ffcv jpg 256`` and ``ffcv raw 256`` read them from ``.beton`` files with that
longer side, ``torch`` reads the JPEG files, as ``spdl`` does, today's fastest loader of threads, and ``torchvision`` is
the reference. Small images have 32 pixels and are padded, cropped and flipped; ``resident`` holds them in memory. The
engine's photographs are bytes, which the step flips and normalises on its device (``bench step`` and ``bench epoch``
count that). Its small images are finished here. The reference's images are normalised floats. Every loader is checked
first: each sample must appear once, and each image must have the colour of its label.

Two more groups have augmentation, and everything is finished in both. ``trivial`` is TrivialAugment, which the
reference does too; ``rand`` is RandAugment with two operations of strength 9; ``colours`` is jitter of colours and hue,
grey, and random erasing. What they cost is the difference from the groups before. There only the samples are checked.

Legend: N samples, B batch, H height, W width, C channels, K classes.
"""

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from fastdhm.benchmarks.harness import report
from fastdhm.benchmarks.harness.frame import Frame, check_counts
from fastdhm.benchmarks.harness.timing import Comparison, Peer
from fastdhm.benchmarks.reference.data import training_set
from fastdhm.benchmarks.reference.threads import spdl_batches, why_no_spdl
from fastdhm.config import TrainConfig
from fastdhm.data.beton.files import ensure
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.loaders.build import build_loader, pick_kind
from fastdhm.data.loaders.loader import Kind, LoaderOptions
from fastdhm.data.sources.arrays import ArraySource
from fastdhm.data.sources.folder import FolderSource
from fastdhm.data.sources.source import Source
from fastdhm.engine.build import training_transform
from fastdhm.errors import UserError
from fastdhm.system import processors

HEIGHT, WIDTH, SMALL = 375, 500, 32
COLOURS = np.array(list(itertools.product((60, 190), repeat=3)), dtype=np.uint8)  # [K, C]
FAR = 60.0  # levels of 255: how far a crop's mean colour may be from its class's, half the distance of two classes
STORED: dict[str, tuple[int, Literal["raw", "jpg"]]] = {
    "ffcv jpg 500": (500, "jpg"),
    "ffcv jpg 256": (256, "jpg"),
    "ffcv raw 256": (256, "raw"),
}
SMALL_IMAGES, QUICK_SMALL_IMAGES = 20_000, 128
AUGMENTED: dict[str, dict[str, Any]] = {
    "trivial": {"augment": "trivial"},
    "rand": {"augment": "rand-2-9"},
    "colours": {"color_jitter": (0.4, 0.4, 0.4, 0.1), "random_grey": 0.2, "random_erase": 0.25},
}
REFERENCE_AUGMENTED = "trivial"  # what the reference does too: no mark divides its time by that of another policy


def bench(frame: Frame, *, images: int, workers: int, batch_size: int) -> int:
    """Time all of it; returns the exit status, 1 if a loader gave other samples.

    Args:
        images: photographs per epoch.
        workers: threads or processes of every loader.
        batch_size: images per batch.

    Raises:
        ValueError: a value out of range, or a folder that is not writable.
    """
    check_counts(images=images, workers=workers, batch_size=batch_size)
    if images < len(COLOURS):
        raise UserError(f"--images is {images}: must be at least {len(COLOURS)}, one of each colour")
    small, batch_size = QUICK_SMALL_IMAGES if frame.quick else SMALL_IMAGES, min(batch_size, images)
    with frame.measuring(), tempfile.TemporaryDirectory(prefix="fastdhm-bench-") as temporary:
        folder = Path(temporary)
        frame.say(f"\ndrawing {images:,} photographs of {WIDTH}x{HEIGHT} pixels")
        photographs, with_ffcv = draw_photographs(folder / "train", images), _has_ffcv(frame)
        drawn, sizes = draw_small(small), (batch_size, workers)
        read = photograph_peers(photographs, folder, *sizes, with_ffcv)
        if missing := why_no_spdl(photographs):
            frame.say(f"left out: {missing}")
        else:
            read.append(_spdl(photographs, _photographic(*sizes)[0], workers))
        groups = {
            f"{images} photographs to 224": read,
            f"{small} images of {SMALL}": small_peers(drawn, folder, *sizes, with_ffcv),
            f"{images} photographs to 224, augmented": augmented_photographs(photographs, folder, *sizes, with_ffcv),
            f"{small} images of {SMALL}, augmented": augmented_small(drawn, *sizes),
        }
        settings = {"max_seconds": 120, "min_sample_seconds": 0, "memory": False}
        comparisons = [frame.compare(label, peers, **settings) for label, peers in groups.items()]
    frame.plot_bars(comparisons, "An epoch of each loader")
    alone = {"torchvision", *(f"resident {name}" for name in AUGMENTED if name != REFERENCE_AUGMENTED)}
    pairs = [("torchvision", name) for c in comparisons for name in c.results if name not in alone]
    pairs += [("spdl", name) for name in (*STORED, "torch")]
    return frame.conclude(
        comparisons,
        marks=report.ratio_marks(comparisons, {f"{slow} over {fast}": (slow, fast) for slow, fast in pairs}),
        settings={"images": images, "workers": workers, "batch_size": batch_size},
        answer=_answer(comparisons[0], images),
    )


def draw_photographs(folder: Path, count: int) -> FolderSource:
    """JPEG files, a folder per class: blocks of noise; the files are about as large as real photographs."""
    rng = np.random.default_rng(0)
    for k in range(len(COLOURS)):
        (folder / f"colour{k}").mkdir(parents=True)
    for i in range(count):
        k = i % len(COLOURS)
        image_HWC = COLOURS[k] + _noise(rng, HEIGHT, WIDTH)
        Image.fromarray(image_HWC.clip(0, 255).astype(np.uint8)).save(folder / f"colour{k}" / f"{i:06}.jpg", quality=90)
    return FolderSource(folder, f"folder:{folder.parent}", "train")


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Grey noise: blocks of 4 pixels with grain on them."""
    blocks_HW = rng.normal(0, 35, (-(-height // 4), -(-width // 4))).repeat(4, 0).repeat(4, 1)[:height, :width]
    return (blocks_HW + rng.normal(0, 6, (height, width)))[:, :, None]


def draw_small(count: int) -> ArraySource:
    """Small images in memory, of the same kind."""
    rng = np.random.default_rng(0)
    target_N = np.arange(count) % len(COLOURS)
    image_NHWC = COLOURS[target_N][:, None, None, :] + rng.normal(0, 20, (count, SMALL, SMALL, 1))
    classes = tuple(f"colour{k}" for k in range(len(COLOURS)))
    return ArraySource("colours", "train", image_NHWC.clip(0, 255).astype(np.uint8), target_N, classes)


def photograph_peers(source: Source, folder: Path, batch_size: int, workers: int, with_ffcv: bool) -> list[Peer]:
    """The loaders of photographs; FFCV's if it is installed."""
    config, options = _photographic(batch_size, workers)
    peers = []
    for name, (side, mode) in (STORED if with_ffcv else {}).items():
        settings = ImageSettings(max_resolution=side, mode=mode, quality=90)
        peers.append(_ours(name, "ffcv", options, source, _beton(source, folder, settings)))
    peers.append(_ours("torch", "torch", options, source, None))
    return [*peers, _theirs(source, config, workers)]


def small_peers(source: ArraySource, folder: Path, batch_size: int, workers: int, with_ffcv: bool) -> list[Peer]:
    """The loaders of small images; the time includes their crops and flips, which run on the device."""
    config, options = _small(batch_size, workers)
    peers = [_ours("resident", "resident", options, source, None, config)]
    if with_ffcv:
        peers.append(_ours("ffcv", "ffcv", options, source, _beton(source, folder, ImageSettings()), config))
    peers.append(_ours("torch", "torch", options, source, None, config))
    return [*peers, _theirs(source, config, workers)]


def augmented_photographs(source: Source, folder: Path, batch_size: int, workers: int, with_ffcv: bool) -> list[Peer]:
    """TrivialAugment of photographs, on the device of our loaders and in the workers of the reference."""
    config, options = _photographic(batch_size, workers)
    config = dataclasses.replace(config, **AUGMENTED[REFERENCE_AUGMENTED])
    peers = [_ours("torch trivial", "torch", options, source, None, config), _theirs(source, config, workers)]
    if with_ffcv:
        beton = _beton(source, folder, ImageSettings(max_resolution=256, mode="jpg", quality=90))
        peers.insert(0, _ours("ffcv jpg 256 trivial", "ffcv", options, source, beton, config))
    return peers


def augmented_small(source: ArraySource, batch_size: int, workers: int) -> list[Peer]:
    """Every augmentation of small images that lie in memory, and TrivialAugment of the reference."""
    config, options = _small(batch_size, workers)
    of = {name: dataclasses.replace(config, **values) for name, values in AUGMENTED.items()}
    peers = [_ours(f"resident {name}", "resident", options, source, None, config) for name, config in of.items()]
    return [*peers, _theirs(source, of[REFERENCE_AUGMENTED], workers)]


def _photographic(batch_size: int, workers: int) -> tuple[TrainConfig, LoaderOptions]:
    config = TrainConfig(image_size=224, crop="scale", flip=True, batch_size=batch_size)
    return config, LoaderOptions(batch_size=batch_size, image_size=224, crop="scale", shuffle=True, workers=workers)


def _small(batch_size: int, workers: int) -> tuple[TrainConfig, LoaderOptions]:
    config = TrainConfig(image_size=SMALL, crop="pad", pad=2, flip=True, batch_size=batch_size)
    return config, LoaderOptions(batch_size=batch_size, image_size=SMALL, crop="pad", shuffle=True, workers=workers)


def _beton(source: Source, folder: Path, settings: ImageSettings) -> Path:
    return ensure(source, folder, source.name, "train", settings, workers=processors.count(), say=lambda text: None)


def _spdl(source: FolderSource, config: TrainConfig, workers: int) -> Peer:
    epochs = itertools.count()
    return _peer("spdl", lambda: spdl_batches(source, config, workers, next(epochs)), source, None)


def _has_ffcv(frame: Frame) -> bool:
    try:
        pick_kind("ffcv")
    except UserError as error:
        frame.say(f"left out: {error}")
        return False
    return True


def _ours(
    name: str, kind: Kind, options: LoaderOptions, source: Source, beton: Path | None, config: TrainConfig | None = None
) -> Peer:
    """A loader of the engine; with ``config``, its batches are augmented and normalised as on the device."""
    loader, epochs = build_loader(kind, options, source=source, beton=beton), itertools.count()
    transform = None if config is None else training_transform(config)

    def read() -> Iterator[tuple[Tensor, Tensor]]:
        epoch = next(epochs)
        if transform is not None:
            transform.draw_epoch(len(source), epoch)  # as a run does
        with loader.epoch(epoch) as batches:
            for batch in batches:
                image = batch.image_BHWC
                if transform is not None:
                    image = transform(image, batch.index_B, epoch, view_B=batch.view_B)
                yield image, batch.target_B

    return _peer(name, read, source, config)


def _theirs(source: Source, config: TrainConfig, workers: int) -> Peer:
    """The reference's way."""
    loader = DataLoader(training_set(source, config), config.batch_size, shuffle=True, num_workers=workers)
    return _peer("torchvision", lambda: iter(loader), source, config)


def _peer(name: str, read: Callable, source: Source, config: TrainConfig | None) -> Peer:
    """A peer that reads an epoch to its end; ``config`` if its batches are normalised."""

    def check(result: dict[str, Tensor]) -> str | None:
        targets, wrong = [], 0
        for image, target_B in read():
            if config is None or not is_augmented(config):
                colour_BC = mean_colours(image, config)
                wrong += int(((colour_BC - torch.from_numpy(COLOURS)[target_B]).abs().amax(1) > FAR).sum())
            targets.append(target_B)
        return find_fault(torch.cat(targets), torch.from_numpy(source.target_N), wrong)

    def run() -> dict[str, Tensor]:
        return {"samples": torch.tensor(sum(len(target_B) for _, target_B in read()))}

    return Peer(name=name, run=run, check=check)


def is_augmented(config: TrainConfig) -> bool:
    """Whether images lose the colours of their labels."""
    return training_transform(config).augmentation is not None


def mean_colours(image: Tensor, config: TrainConfig | None) -> Tensor:
    """The mean colour of each image of a batch, in levels of 255, ``[B, C]``; takes bytes BHWC or normalised BCHW."""
    if config is None:
        return image.float().mean((1, 2))
    std_C, mean_C = torch.tensor(config.std), torch.tensor(config.mean)
    return 255 * (image.mean((2, 3)) * std_C + mean_C)


def find_fault(target_N: Tensor, expected_N: Tensor, wrong: int) -> str | None:
    """What is wrong with the samples of an epoch, or None."""
    if len(target_N) != len(expected_N):
        return f"an epoch has {len(target_N)} samples: must be {len(expected_N)}"
    if not torch.equal(target_N.sort().values, expected_N.sort().values):
        return "an epoch has other labels than the data set"
    return f"images that do not match their labels: {wrong}" if wrong else None


def _answer(comparison: Comparison, images: int) -> dict[str, float | str | None]:
    """Images per second of the reference and of JPEG at 256 pixels (torch's loader without FFCV)."""
    ours = "ffcv jpg 256" if "ffcv jpg 256" in comparison.results else "torch"
    times_ms = {"reference": comparison.median_ms("torchvision"), "fastdhm": comparison.median_ms(ours)}
    rates = {f"{name}_images_per_s": 1e3 * images / ms if ms else None for name, ms in times_ms.items()}
    return {**rates, "fastdhm_loader": ours, "speedup": comparison.speedup("torchvision", ours)}
