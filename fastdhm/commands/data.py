"""``fastdhm data build|verify|info``: the ``.beton`` files of a data set."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from fastdhm.data.beton.files import Manifest, beton_path, ensure
from fastdhm.data.beton.files import build as build_beton
from fastdhm.data.beton.files import info as read_info
from fastdhm.data.beton.files import verify as verify_beton
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.loaders.build import pick_kind
from fastdhm.data.sources.load import load_splits
from fastdhm.data.sources.source import SPLITS, split_names
from fastdhm.system import processors
from fastdhm.system.console import Console


def build(
    dataset: str,
    data_dir: Path,
    settings: ImageSettings,
    *,
    workers: int | None = None,
    skip_bad: bool = False,
    force: bool = False,
) -> None:
    """Write the ``.beton`` files that are missing or stale (with ``force``: all). Every image is decoded and checked.

    Raises:
        ValueError: some images do not decode, and ``skip_bad`` is false; the message lists them.
    """
    pick_kind("ffcv")  # says how to get FFCV where it is missing
    console = Console()
    workers = processors.count() if workers is None else max(workers, 1)
    for split, source in load_splits(dataset, data_dir, split_names(dataset), settings.grey_range).items():
        if source.note:
            console.print(source.note)
        if force:
            path = beton_path(data_dir, dataset, split, settings)
            build_beton(source, path, settings, workers=workers, skip_bad=skip_bad)
        else:
            ensure(source, data_dir, dataset, split, settings, workers=workers, skip_bad=skip_bad, say=console.print)
    _print(dataset, data_dir, settings, console)


def verify(dataset: str, data_dir: Path, settings: ImageSettings) -> None:
    """Read every byte of the ``.beton`` files, decode every image and compare with the manifests.

    Raises:
        ValueError: a file is missing, cut short, damaged, of another version, or does not match its manifest.
    """
    pick_kind("ffcv")
    for path in _paths(dataset, data_dir, settings):
        verify_beton(path)
    console = Console()
    _print(dataset, data_dir, settings, console)
    console.result("all images decode, all checksums match")


def info(dataset: str, data_dir: Path, settings: ImageSettings) -> None:
    """Print what the ``.beton`` files hold, after a quick check of their size and index."""
    _print(dataset, data_dir, settings, Console())


def _paths(dataset: str, data_dir: Path, settings: ImageSettings) -> list[Path]:
    """The files for training, and those of query and gallery if they exist: only evaluation needs them."""
    paths = {split: beton_path(data_dir, dataset, split, settings) for split in split_names(dataset)}
    return [path for split, path in paths.items() if split in SPLITS or path.exists()]


def _print(dataset: str, data_dir: Path, settings: ImageSettings, console: Console) -> None:
    paths = _paths(dataset, data_dir, settings)
    manifests = [read_info(path) for path in paths]
    console.result(f"{dataset} in {paths[0].parent}", style="italic")
    table = Table(show_header=False)
    for values in zip(_column(None), *(_column(manifest) for manifest in manifests), strict=True):
        table.add_row(*values)
    console.result(table)
    for manifest in manifests:
        if manifest.note:
            console.result(f"{manifest.split}: {manifest.note}")


def _column(manifest: Manifest | None) -> list[str]:
    if manifest is None:
        return ["split", "images", "left out", "classes", "images a class", "stored", "sides", "size", "source", "by"]
    classes = ", ".join(manifest.classes[:3]) + (", ..." if len(manifest.classes) > 3 else "")
    return [
        manifest.split,
        f"{manifest.count:,}",
        f"{len(manifest.skipped):,}",
        f"{len(manifest.classes)}: {classes}",
        f"{min(manifest.class_counts):,} to {max(manifest.class_counts):,}",
        manifest.settings.tag,
        f"{manifest.min_side} to {manifest.max_side} px",
        f"{manifest.file_bytes / 2**20:,.1f} MiB",
        manifest.source_digest[:16],
        f"{manifest.created_by}, format {manifest.format_version}",
    ]
