"""The ``.beton`` file of a split and the manifest beside it: their paths, and whether they are up to date and whole.

Legend: N samples, K classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fastdhm
from fastdhm.data.beton.build import bad_files_error, bad_files_path, check_space, write_images
from fastdhm.data.beton.format import read_index
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.beton.verify import find_damage
from fastdhm.data.sources.source import Source
from fastdhm.errors import UserError
from fastdhm.system import processors
from fastdhm.system.files import replacing, sha256_of
from fastdhm.system.folders import held
from fastdhm.system.paths import expanded, short_name, shown
from fastdhm.system.progress import progress_bar
from fastdhm.system.streams import narrate

MANIFEST_VERSION = 1
BUILDER = "a build of .beton files"
REBUILD = "build it with `fastdhm data build`"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a ``.beton`` was made from, and what it must contain."""

    format_version: int = MANIFEST_VERSION
    dataset: str
    split: str
    count: int
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    source_digest: str
    settings: ImageSettings
    skipped: tuple[str, ...]
    min_side: int
    max_side: int
    file_bytes: int
    sha256: str
    index_sha256: str
    created_by: str
    note: str | None = None
    """A message for the user, shown at every use."""
    fingerprint: str | None = None
    """Of the source; None in older manifests, which do not have it."""


def beton_path(data_dir: Path, dataset: str, split: str, settings: ImageSettings) -> Path:
    """``<data_dir>/beton/<data set>-<settings>/<split>.beton``."""
    slug = re.sub(r"[^a-z0-9]+", "-", dataset.lower())
    kind, _, folder = dataset.partition(":")
    if kind in ("folder", "reid-folder"):
        root = expanded(folder).absolute()
        name, mark = re.sub(r"[^A-Za-z0-9]+", "-", root.name), hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
        slug = f"{kind}-{short_name(name)}-{mark}"
    return expanded(data_dir) / "beton" / f"{slug}-{settings.tag}" / f"{split}.beton"


def build(
    source: Source, path: Path, settings: ImageSettings, *, workers: int, skip_bad: bool = False, progress: bool = True
) -> Manifest:
    """Write ``source`` to ``path`` and its manifest beside it, replacing old files.

    Every image is decoded once. If some are bad, a ``UserError`` lists all of them; with ``skip_bad`` they are left
    out, and the manifest names them. Whatever happens, ``path`` is either whole or unchanged.
    """
    with held(path.parent, BUILDER, narrate, wait=True):
        return _build(source, path, settings, workers, skip_bad, progress)


def ensure(
    source: Source | None,
    data_dir: Path,
    dataset: str,
    split: str,
    settings: ImageSettings,
    *,
    workers: int,
    skip_bad: bool = False,
    say: Callable[[str], None] = narrate,
) -> Path:
    """The path of a ``.beton`` that is whole and up to date; builds it if need be.

    Without a ``source`` (its images no longer exist) the file is used as it is; a missing or damaged file raises a
    ``UserError``.
    """
    path = beton_path(data_dir, dataset, split, settings)
    stale = why_stale(path, source, settings, skip_bad)
    if stale:
        if source is None:
            raise UserError(
                f"{stale}. The images to build it from are not there: put them back, or put back the file and its "
                "manifest."
            )
        with held(path.parent, BUILDER, say, wait=True):
            stale = why_stale(path, source, settings, skip_bad)  # another process may have built it meanwhile
            if stale:
                say(f"{dataset} {split}: building the .beton file, because {stale}")
                _build(source, path, settings, workers, skip_bad, progress=True)
    manifest = read_manifest(path)
    if manifest.note:
        say(f"{dataset} {split}: {manifest.note}")
    if manifest.skipped:
        count = len(manifest.skipped)
        left_out = "1 bad image is left out" if count == 1 else f"{count:,} bad images are left out"
        say(f"{dataset} {split}: {left_out}, see '{shown(manifest_path(path))}'")
    return path


def why_stale(path: Path, source: Source | None, settings: ImageSettings, skip_bad: bool = False) -> str | None:
    """Why ``path`` must be built (again), or None; without ``skip_bad`` a file that lacks bad images is stale."""
    if not path.exists():
        return f"{shown(path)} does not exist"
    try:
        manifest = check(path)
    except UserError as error:
        return str(error)
    if source is not None and manifest.source_digest != source.digest():
        return "the images have changed since it was built"
    if manifest.settings != settings:
        return f"it was built with other image settings ({manifest.settings.tag}, not {settings.tag})"
    if manifest.skipped and not skip_bad:
        images = "1 image" if len(manifest.skipped) == 1 else f"{len(manifest.skipped):,} images"
        return f"{shown(path)} lacks {images} that could not be read, and --skip-bad is not given"
    return None


def check(path: Path) -> Manifest:
    """The quick check before every use: the file's size and index must be those in its manifest."""
    manifest = read_manifest(path)
    if not path.is_file():
        raise UserError(f"{shown(path)} is missing, but its manifest is there: {REBUILD}")
    size = path.stat().st_size
    if size != manifest.file_bytes:
        what = "is cut short" if size < manifest.file_bytes else "has grown"
        raise UserError(f"{shown(path)} {what}: it has {size:,} bytes, its manifest says {manifest.file_bytes:,}")
    index = read_index(path)
    if len(index.sample_N) != manifest.count or index.sha256 != manifest.index_sha256:
        raise UserError(f"{shown(path)} does not match its manifest: it is another file, or damaged")
    return manifest


def verify(path: Path, *, deep: bool = True, progress: bool = True, workers: int | None = None) -> Manifest:
    """Check a ``.beton`` against its manifest; ``deep`` also reads every byte and decodes every image.

    A mismatch raises a ``UserError``.
    """
    path = Path(path)
    manifest = check(path)
    index = read_index(path)
    if tuple(np.bincount(index.target_N, minlength=len(manifest.classes)).tolist()) != manifest.class_counts:
        raise UserError(f"{shown(path)} does not match its manifest: its labels differ")
    if not deep:
        return manifest
    bar = progress_bar(f"verify {manifest.dataset} {manifest.split}", manifest.count, progress)
    damaged = find_damage(path, index, workers or processors.count(), bar)
    if damaged:
        raise UserError(
            f"{shown(path)} is damaged: {len(damaged):,} of {manifest.count:,} images cannot be decoded: {damaged[0]}"
        )
    if sha256_of(path) != manifest.sha256:
        raise UserError(f"{shown(path)} does not match its manifest: its checksum differs")
    return manifest


def info(path: Path) -> Manifest:
    """The manifest, after the quick check."""
    return check(Path(path))


def manifest_path(path: Path) -> Path:
    return path.with_suffix(".json")


def read_manifest(path: Path) -> Manifest:
    """The manifest beside the ``.beton`` at ``path``."""
    place = manifest_path(Path(path))
    try:
        values = json.loads(place.read_text("utf-8"))
        if values["format_version"] != MANIFEST_VERSION:
            version = values["format_version"]
            raise UserError(
                f"{shown(place)} has format version {version}, but this fastdhm reads version {MANIFEST_VERSION}"
            )
        settings = values["settings"]
        settings["grey_range"] = tuple(settings["grey_range"]) if settings.get("grey_range") else None
        values["settings"] = ImageSettings(**settings)
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return Manifest(**values)
    except FileNotFoundError as error:
        if not Path(path).exists():
            raise UserError(f"{shown(path)} does not exist: {REBUILD}") from error
        raise UserError(f"{shown(path)} has no manifest: {shown(place)} is missing") from error
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{shown(place)} is not a manifest that this fastdhm can read") from error


def _build(
    source: Source, path: Path, settings: ImageSettings, workers: int, skip_bad: bool, progress: bool
) -> Manifest:
    source.digest()  # the source remembers it: the digest must be of the files before they are read, not after
    check_space(source, settings, path.parent)
    bar = progress_bar(f"{source.name} {source.split}", len(source), progress)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        written = write_images(file, source, settings, workers=workers, skip_bad=skip_bad, bar=bar)
        if written.bad and (not skip_bad or len(written.bad) == len(source)):
            raise bad_files_error(written.bad, len(source), bad_files_path(path))
        # Until the new manifest is written, there is none: a crash in between must not leave a pair that looks good.
        manifest_path(path).unlink(missing_ok=True)
    manifest = _describe(source, path, settings, written)
    text = json.dumps(dataclasses.asdict(manifest), indent=1)
    with replacing(manifest_path(path)) as temporary:
        temporary.write_bytes(text.encode())
    bad_files_path(path).unlink(missing_ok=True)
    return manifest


def _describe(source: Source, path: Path, settings: ImageSettings, written) -> Manifest:
    index = read_index(path)
    return Manifest(
        dataset=source.name,
        split=source.split,
        count=len(index.sample_N),
        classes=source.classes,
        class_counts=tuple(np.bincount(index.target_N, minlength=len(source.classes)).tolist()),
        source_digest=source.digest(),
        fingerprint=source.fingerprint(),
        settings=settings,
        skipped=tuple(written.bad[i] for i in sorted(written.bad)),
        min_side=written.min_side,
        max_side=written.max_side,
        file_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        index_sha256=index.sha256,
        created_by=f"fastdhm {fastdhm.__version__}",
        note=written.deep.said(settings.grey_range),
    )
