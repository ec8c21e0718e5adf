"""From images on disk to batches: sources, ``.beton`` files, loaders, and what is done to a batch on the device.

Importing this costs nothing: FFCV, torchvision and torch load when first used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastdhm.data._pool import default_workers
from fastdhm.errors import UserError

if TYPE_CHECKING:
    from fastdhm.data.beton import ImageSettings
    from fastdhm.data.crops import Crop, ImageSize
    from fastdhm.data.loaders import Loader, LoaderOptions
    from fastdhm.data.sources import Source

Kind = Literal["ffcv", "torch"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class LoadedData:
    """What a run trains and validates on."""

    train: Loader
    val: Loader
    classes: tuple[str, ...]
    kind: Kind

    def close(self) -> None:
        """Close both loaders."""
        self.train.close()
        self.val.close()


@dataclass(frozen=True)
class LoadedSplit:
    """What a network is judged on: one split, every sample of it, in order."""

    loader: Loader
    source: Source
    """The same samples under the same numbers, one at a time."""
    kind: Kind

    @property
    def classes(self) -> tuple[str, ...]:
        """Of a query or a gallery ``reid.sightings`` reads identities and cameras from them and the targets."""
        return self.source.classes

    def close(self) -> None:
        """Close the loader."""
        self.loader.close()


def open_loaders(
    dataset: str,
    data_dir: Path,
    *,
    loader: Literal["auto", "ffcv", "torch"] = "auto",
    batch_size: int,
    eval_batch_size: int,
    image_size: ImageSize,
    crop: Crop,
    crop_ratio: float,
    seed: int,
    workers: int | None = None,
    settings: ImageSettings | None = None,
    skip_bad: bool = False,
    hold_out: bool = False,
    say: Say = print,
) -> LoadedData:
    """Both loaders of ``dataset``, with whatever has to be built first, which ``say`` reports.

    ``image_size`` is a square's side or (height, width). ``crop`` is training's; validation takes the whole image where
    training stretches it, else the centre with sides ``crop_ratio`` of the largest that fits. Where the images are gone
    but their ``.beton`` files are there and whole, the ffcv loader runs on those. ``workers`` (default: one per core)
    are the loaders'; what is built before is built on every core.

    A re-identification set trains on all its training pictures, as published results do, and its validation pictures
    are some of them; with ``hold_out`` they are kept out of training, to compare settings by.
    """
    from fastdhm.data.crops import evaluation_crop
    from fastdhm.data.loaders import LoaderOptions
    from fastdhm.data.sources import is_reid

    common = {"image_size": image_size, "crop_ratio": crop_ratio, "seed": seed, "workers": workers}
    train = LoaderOptions(batch_size=batch_size, crop=crop, shuffle=True, drop_last=True, **common)
    val = LoaderOptions(batch_size=eval_batch_size, crop=evaluation_crop(crop), **common)
    if hold_out and not is_reid(dataset):
        raise UserError(f"data set '{dataset}' has validation images of its own: only re-identification sets hold out")
    splits = {"rest" if hold_out else "train": train, "val": val}
    opened = _open(dataset, data_dir, splits, loader, settings, skip_bad, say)
    if is_reid(dataset) and not hold_out:
        say(
            f"{dataset}: the {opened[1].loader.num_samples:,} validation pictures are training pictures too; their "
            "error says whether training works, not how good it is"
        )
    return LoadedData(opened[0].loader, opened[1].loader, opened[0].classes, opened[0].kind)


def open_splits(
    dataset: str,
    data_dir: Path,
    splits: Sequence[str] = ("val",),
    *,
    loader: Literal["auto", "ffcv", "torch"] = "auto",
    batch_size: int,
    image_size: ImageSize,
    crop: Crop,
    crop_ratio: float = 1.0,
    workers: int | None = None,
    settings: ImageSettings | None = None,
    skip_bad: bool = False,
    say: Say = print,
) -> list[LoadedSplit]:
    """Splits of ``dataset`` to judge a network on: ``val``, or ``query`` and ``gallery`` of a re-identification set.

    Every sample comes, in order. The arguments are those of :func:`open_loaders`; ``crop`` too is training's.
    """
    from fastdhm.data.crops import evaluation_crop
    from fastdhm.data.loaders import LoaderOptions
    from fastdhm.data.sources import split_names
    from fastdhm.errors import unknown

    for split in splits:
        if split not in split_names(dataset):
            raise unknown(f"split of data set '{dataset}'", split, split_names(dataset))
    options = LoaderOptions(
        batch_size=batch_size, image_size=image_size, crop=evaluation_crop(crop), crop_ratio=crop_ratio, workers=workers
    )
    return _open(dataset, data_dir, dict.fromkeys(splits, options), loader, settings, skip_bad, say)


def open_pictures(
    folder: Path,
    *,
    batch_size: int,
    image_size: ImageSize,
    crop: Crop,
    crop_ratio: float = 1.0,
    workers: int | None = None,
    skip_bad: bool = False,
    say: Say = print,
) -> LoadedSplit:
    """Every image in a folder and below it, in order; ``source.label(i)`` is its path in there.

    The torch loader reads them: they are read once, which a ``.beton`` file would not repay. ``crop`` is training's.
    """
    from fastdhm.data.crops import evaluation_crop
    from fastdhm.data.folder import PictureSource
    from fastdhm.data.loaders import LoaderOptions, build_loader

    options = LoaderOptions(
        batch_size=batch_size, image_size=image_size, crop=evaluation_crop(crop), crop_ratio=crop_ratio, workers=workers
    )
    source = _checked(PictureSource(folder), skip_bad, say)
    return LoadedSplit(build_loader("torch", options, source=source), source, "torch")


def _open(
    dataset: str,
    data_dir: Path,
    splits: dict[str, LoaderOptions],
    loader: str,
    settings: ImageSettings | None,
    skip_bad: bool,
    say: Say,
) -> list[LoadedSplit]:
    from fastdhm.data.beton import ImageSettings
    from fastdhm.data.loaders import build_loader, pick_kind

    kind, reason = pick_kind(loader)
    if loader == "auto" and kind == "torch":
        say(f"loading with torch: {reason}")
    if kind == "ffcv":
        settings = settings or ImageSettings.for_dataset(dataset)
        sources, betons = _prepare_betons(dataset, data_dir, tuple(splits), settings, skip_bad, say)
    else:
        sources, betons = _prepare_sources(dataset, data_dir, tuple(splits), skip_bad, say), [None] * len(splits)
    return [
        LoadedSplit(build_loader(kind, options, source=source, beton=beton), source, kind)
        for options, source, beton in zip(splits.values(), sources, betons, strict=True)
    ]


def _prepare_betons(
    dataset: str, data_dir: Path, splits: Sequence[str], settings: ImageSettings, skip_bad: bool, say: Say
) -> tuple[list[Source], list[Path]]:
    """The ``.beton`` of each split, and a source of just what is in it."""
    from fastdhm.data.beton import beton_path, ensure, read_manifest
    from fastdhm.data.beton_source import BetonSource
    from fastdhm.data.sources import load_splits

    try:
        loaded = load_splits(dataset, data_dir, splits)
    except UserError as error:
        if not all(beton_path(data_dir, dataset, split, settings).exists() for split in splits):
            raise
        say(f"using the .beton files alone: {error}")
        loaded = dict.fromkeys(splits)
    options = {"workers": default_workers(), "skip_bad": skip_bad, "say": say}
    sources, betons = [], []
    for split, source in loaded.items():
        _say_note(source, say)
        betons.append(ensure(source, data_dir, dataset, split, settings, **options))
        whole = source is not None and not read_manifest(betons[-1]).skipped
        sources.append(source if whole else BetonSource(betons[-1]))
    return sources, betons


def _prepare_sources(dataset: str, data_dir: Path, splits: Sequence[str], skip_bad: bool, say: Say) -> list[Source]:
    from fastdhm.data.sources import load_splits

    loaded = load_splits(dataset, data_dir, splits)
    return [_checked(source, skip_bad, say) for source in loaded.values()]


def _checked(source: Source, skip_bad: bool, say: Say) -> Source:
    """``source``, with ``skip_bad`` without the images that do not decode."""
    from fastdhm.data.readable import readable_only

    _say_note(source, say)
    return readable_only(source, default_workers(), say) if skip_bad else source


def _say_note(source: Source | None, say: Say) -> None:
    if source is not None and source.note:
        say(source.note)
