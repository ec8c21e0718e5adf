"""A data set opened for a run: its sources, the ``.beton`` files that are missing or stale, and its loaders.

Legend: N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastdhm.errors import UserError, unknown
from fastdhm.system import processors
from fastdhm.system.streams import narrate

if TYPE_CHECKING:
    import numpy as np

    from fastdhm.data.beton.settings import ImageSettings
    from fastdhm.data.loaders.loader import Kind, Loader, LoaderOptions
    from fastdhm.data.options import DataOptions
    from fastdhm.data.sources.identity import Identity
    from fastdhm.data.sources.source import Source

Say = Callable[[str], None]


@dataclass(frozen=True)
class LoadedData:
    """What a run trains and validates on."""

    train: Loader
    val: Loader
    classes: tuple[str, ...]
    kind: Kind
    target_N: np.ndarray
    """The training labels by sample index, int64."""
    identity: Identity
    """Which images these are."""
    val_source: Source
    """The validation images, one at a time."""

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

    @cached_property
    def identity(self) -> dict[str, int | str | None]:
        """Which images these are."""
        from fastdhm.data.sources.identity import identity

        return identity(self.source)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names. For queries and galleries, ``sightings`` reads identities and cameras from them."""
        return self.source.classes

    def close(self) -> None:
        """Close the loader."""
        self.loader.close()


def open_loaders(dataset: str, data_dir: Path, options: DataOptions, *, say: Say = narrate) -> LoadedData:
    """Both loaders of ``dataset``. Files that they need are built first, and ``say`` reports it.

    If the images are gone but their ``.beton`` files exist and are complete, those are used. Files are built on every
    processor, however many workers the loaders have.

    A re-identification set trains on all its training pictures, as published results do, and its validation pictures
    are some of them. With ``hold_out`` they are kept out of training, so that settings can be compared by them.
    """
    from fastdhm.data.sources.source import is_reid

    if options.hold_out and not is_reid(dataset):
        raise UserError(f"data set '{dataset}' has validation images of its own: only re-identification sets hold out")
    splits = {"rest" if options.hold_out else "train": options.for_training(), "val": options.for_judging()}
    train, val = _open(dataset, data_dir, splits, options, say)
    if is_reid(dataset) and not options.hold_out:
        say(
            f"{dataset}: the {val.loader.num_samples:,} validation pictures are training pictures too; their "
            "error says whether training works, not how good it is"
        )
    identity = {"train": train.identity, "val": val.identity}
    return LoadedData(train.loader, val.loader, train.classes, train.kind, train.source.target_N, identity, val.source)


def open_splits(
    dataset: str, data_dir: Path, splits: Sequence[str], options: DataOptions, *, say: Say = narrate
) -> list[LoadedSplit]:
    """Splits of ``dataset`` to judge a network on: ``val``, or ``query`` and ``gallery`` of a re-identification set.

    Every sample comes, in order.
    """
    from fastdhm.data.sources.source import split_names

    for split in splits:
        if split not in split_names(dataset):
            raise unknown(f"split of data set '{dataset}'", split, split_names(dataset))
    return _open(dataset, data_dir, dict.fromkeys(splits, options.for_judging()), options, say)


def open_pictures(folder: Path, options: DataOptions, *, say: Say = narrate) -> LoadedSplit:
    """Every image in a folder and below it, in order; ``source.label(i)`` is its path in there.

    The torch loader reads them, whatever the options say: they are read only once, so a ``.beton`` file is not worth
    building.
    """
    from fastdhm.data.loaders.build import build_loader
    from fastdhm.data.sources.folder import PictureSource

    pictures = PictureSource(folder, options.grey_range)
    if pictures.note:
        say(pictures.note)
    source = _checked(pictures, options.skip_bad, say)
    return LoadedSplit(build_loader("torch", options.for_judging(), source=source), source, "torch")


def _open(
    dataset: str, data_dir: Path, splits: dict[str, LoaderOptions], options: DataOptions, say: Say
) -> list[LoadedSplit]:
    from fastdhm.data.loaders.build import pick_kind
    from fastdhm.data.loaders.resident_loader import CannotHold

    asked = options.loader
    picked = None if asked == "auto" else pick_kind(asked)  # a mistake is found before anything is read
    settings, wished = options.stored(dataset), options.settings is not None
    loaded = _load(dataset, data_dir, tuple(splits), settings, asked != "torch", say)
    files = _Files(dataset, data_dir, loaded, settings, options.skip_bad, say)
    if asked in ("auto", "resident"):
        try:
            return _open_resident(files, splits, from_files=wished, asked=asked == "resident")
        except CannotHold as error:
            if asked == "resident":
                raise UserError(
                    f"loader 'resident' cannot hold the images of {dataset}: {error}. Choose auto, ffcv or torch"
                ) from error
    kind, reason = picked or pick_kind("auto")  # this imports FFCV, which takes seconds
    if kind == "torch" and wished:
        raise UserError(
            f"the torch loader ({reason}) stores no images: leave --store, --store-size and --store-quality out, or "
            "take --loader ffcv, which a run that began with them resumes with"
        )
    if asked == "auto" and kind == "torch":
        say(f"loading with torch: {reason}")
    if kind == "ffcv" or None in loaded.values():
        return _built(kind, splits, *files.built)
    sources = [_checked(source, options.skip_bad, say) for source in loaded.values() if source is not None]
    return _built(kind, splits, sources, [None] * len(sources))


def _built(
    kind: Kind, splits: dict[str, LoaderOptions], sources: Sequence[Source], betons: Sequence[Path | None]
) -> list[LoadedSplit]:
    from fastdhm.data.loaders.build import build_loader

    return [
        LoadedSplit(build_loader(kind, options, source=source, beton=beton), source, kind)
        for options, source, beton in zip(splits.values(), sources, betons, strict=True)
    ]


def _open_resident(files: _Files, splits: dict[str, LoaderOptions], from_files: bool, asked: bool) -> list[LoadedSplit]:
    """Loaders that hold everything in memory; ``CannotHold``, as early as possible, if the images do not allow that.

    Arrays that are in memory already are used directly, unless ``from_files``.
    """
    from torch import device

    from fastdhm.data.loaders.resident_loader import check_beton, check_crop, check_room, check_source
    from fastdhm.data.sources.source import gives_arrays

    options, sources = list(splits.values()), list(files.loaded.values())
    check = partial(check_room, device=device(options[0].device), asked=asked)
    for option in options:
        check_crop(option)
    if not from_files:
        pairs = zip(sources, options, strict=True)
        check(sum(check_source(source, option) for source, option in pairs if source is not None))
    arrays = [source for source in sources if source is not None and gives_arrays(source)]
    if not from_files and len(arrays) == len(sources):
        return _built("resident", splits, arrays, [None] * len(arrays))
    whole, betons = files.built
    check(sum(check_beton(*pair) for pair in zip(betons, options, strict=True)))
    return _built("resident", splits, whole, betons)


def _load(
    dataset: str, data_dir: Path, splits: Sequence[str], settings: ImageSettings, from_files: bool, say: Say
) -> Mapping[str, Source | None]:
    """The sources by split. All are None if the images are gone, but their ``.beton`` files of those settings exist and
    ``from_files`` says that the loader can read them."""
    from fastdhm.data.beton.files import beton_path
    from fastdhm.data.sources.load import load_splits
    from fastdhm.data.sources.walk import ImagesGone

    try:
        loaded = load_splits(dataset, data_dir, splits, settings.grey_range)
    except ImagesGone as error:
        if not from_files or not all(beton_path(data_dir, dataset, split, settings).exists() for split in splits):
            raise
        say(f"using the .beton files alone: {error}")
        return dict.fromkeys(splits)
    for source in loaded.values():
        if source.note:
            say(source.note)
    return loaded


@dataclass
class _Files:
    """The ``.beton`` files of some splits: where they come from, and how they are built."""

    dataset: str
    data_dir: Path
    loaded: Mapping[str, Source | None]
    settings: ImageSettings
    skip_bad: bool
    say: Say

    @cached_property
    def built(self) -> tuple[list[Source], list[Path]]:
        """For each split, a source of exactly the images in its file, and the file; built now if necessary."""
        from fastdhm.data.beton.files import ensure, read_manifest
        from fastdhm.data.beton.source import BetonSource

        sources: list[Source] = []
        betons: list[Path] = []
        for split, source in self.loaded.items():
            beton = ensure(
                source, self.data_dir, self.dataset, split, self.settings,
                workers=processors.count(), skip_bad=self.skip_bad, say=self.say,
            )  # fmt: skip
            betons.append(beton)
            sources.append(BetonSource(beton) if source is None or read_manifest(beton).skipped else source)
        return sources, betons


def _checked(source: Source, skip_bad: bool, say: Say) -> Source:
    """``source``; with ``skip_bad``, only its images that can be decoded."""
    from fastdhm.data.sources.folder import FolderSource, refuse_unreadable
    from fastdhm.data.sources.readable import readable_only

    if skip_bad:
        return readable_only(source, processors.count(), say)
    if isinstance(source, FolderSource):
        refuse_unreadable(source)
    note = _peek_deep(source)
    if note:
        say(note)
    return source


def _peek_deep(source: Source) -> str | None:
    """What a look at a few images tells about deep greyscale; None if there is none."""
    from fastdhm.data.images.grey import DeepPictures
    from fastdhm.data.sources.folder import FolderSource, may_be_deep
    from fastdhm.data.sources.source import peeked

    deep, looked_at = DeepPictures(), peeked(source)
    for i in looked_at if isinstance(source, FolderSource) else ():
        if may_be_deep(source.label(i)):
            deep.note(source.image(i))  # a bad one is told now, and not in the middle of an epoch
    said = deep.said(getattr(source, "grey_range", None))
    return f"{source.name} {source.split}, of {len(looked_at)} that were looked at: {said}" if said else None
