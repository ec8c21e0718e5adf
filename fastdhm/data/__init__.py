"""From images on disk to batches: sources, ``.beton`` files, loaders, and what is done to a batch on the device.

Importing this costs nothing: FFCV, torchvision and torch load when first used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastdhm.data._pool import default_workers
from fastdhm.errors import UserError

if TYPE_CHECKING:
    from fastdhm.data.beton import ImageSettings
    from fastdhm.data.crops import Crop
    from fastdhm.data.loaders import Loader
    from fastdhm.data.sources import Source


@dataclass(frozen=True)
class LoadedData:
    """What a run trains and validates on."""

    train: Loader
    val: Loader
    classes: tuple[str, ...]
    kind: Literal["ffcv", "torch"]

    def close(self) -> None:
        """Close both loaders."""
        self.train.close()
        self.val.close()


def open_loaders(
    dataset: str,
    data_dir: Path,
    *,
    loader: Literal["auto", "ffcv", "torch"] = "auto",
    batch_size: int,
    eval_batch_size: int,
    image_size: int,
    crop: Crop,
    crop_ratio: float,
    seed: int,
    workers: int | None = None,
    settings: ImageSettings | None = None,
    skip_bad: bool = False,
    say: Callable[[str], None] = print,
) -> LoadedData:
    """Both loaders of ``dataset``, with whatever has to be built first, which ``say`` reports.

    ``crop`` is training's; validation takes the centre square with side ``crop_ratio`` of the short side. Where the
    images are gone but their ``.beton`` files are there and whole, the ffcv loader runs on those. ``workers`` (default:
    one per core) are the loaders'; what is built before is built on every core.
    """
    from fastdhm.data.beton import ImageSettings
    from fastdhm.data.loaders import build_loader, pick_kind

    kind, reason = pick_kind(loader)
    if loader == "auto" and kind == "torch":
        say(f"loading with torch: {reason}")
    settings = settings or ImageSettings.for_dataset(dataset)
    if kind == "ffcv":
        sources, betons, classes = _prepare_betons(dataset, data_dir, settings, skip_bad, say)
    else:
        sources, betons, classes = _prepare_sources(dataset, data_dir, skip_bad, say)
    common = {"image_size": image_size, "crop_ratio": crop_ratio, "seed": seed, "workers": workers}
    train = {"batch_size": batch_size, "crop": crop, "shuffle": True, "drop_last": True}
    val = {"batch_size": eval_batch_size, "crop": "center", "shuffle": False, "drop_last": False}
    loaders = [
        build_loader(kind, source, beton=beton, **options, **common)
        for source, beton, options in zip(sources, betons, (train, val), strict=True)
    ]
    return LoadedData(*loaders, classes, kind)


def _prepare_betons(dataset: str, data_dir: Path, settings: ImageSettings, skip_bad: bool, say: Callable[[str], None]):
    from fastdhm.data.beton import beton_path, ensure, read_manifest
    from fastdhm.data.sources import load_sources

    try:
        sources = load_sources(dataset, data_dir)
    except UserError as error:
        if not beton_path(data_dir, dataset, "train", settings).exists():
            raise
        say(f"using the .beton files alone: {error}")
        sources = (None, None)
    _say_notes(sources, say)
    options = {"workers": default_workers(), "skip_bad": skip_bad, "say": say}
    betons = [
        ensure(source, data_dir, dataset, split, settings, **options)
        for source, split in zip(sources, ("train", "val"), strict=True)
    ]
    return sources, betons, read_manifest(betons[0]).classes


def _prepare_sources(dataset: str, data_dir: Path, skip_bad: bool, say: Callable[[str], None]):
    from fastdhm.data.readable import readable_only
    from fastdhm.data.sources import load_sources

    sources = load_sources(dataset, data_dir)
    _say_notes(sources, say)
    if skip_bad:
        sources = tuple(readable_only(source, default_workers(), say) for source in sources)
    return sources, (None, None), sources[0].classes


def _say_notes(sources: tuple[Source | None, Source | None], say: Callable[[str], None]) -> None:
    for source in sources:
        if source is not None and source.note:
            say(source.note)
