"""A folder that has one folder of images for every class, and a folder of images without classes.

Legend: N samples.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastdhm.data.images.read import Shrink, read_image
from fastdhm.data.sources.walk import (
    IMAGE_SUFFIXES,
    ImagesGone,
    Walk,
    holds_anything,
    is_system,
    is_there,
    suffixes,
    walk,
)
from fastdhm.errors import UserError, counted, few
from fastdhm.system.paths import printable, shown

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdhm.data.images.grey import GreyRange

CONVERSION = 3  # version of the conversion of deep and transparent images to 8-bit RGB; older .beton files are stale

LOOKED_INTO, LOOKED_AT = 128, 1 << 16  # files, and bytes of each, that a fingerprint reads


class FolderSource:
    """``root/<class>/**/<image>``: classes and files in sorted order; see ``walk`` on links and what is left out.

    Every file with an image suffix counts as an image and must decode. A folder that cannot be entered counts as a bad
    image; otherwise its images would be missing silently. ``note`` says what is left out.
    """

    grey_range: GreyRange | None = None
    """The values of black and white in deep greyscale, see ``grey``."""

    def __init__(self, root: Path, name: str, split: str, classes: Sequence[str] = ()):
        """``classes`` are those of the other split; a name that is in both is written as there."""
        self.name, self.split, self.root = name, split, Path(root).absolute()
        found = walk(self.root)
        class_of = _classes_of_folders(found, classes)
        self.classes = tuple(sorted(set(class_of.values())))
        number_of = {folder: self.classes.index(name) for folder, name in class_of.items()}
        names, beside = [], 0
        for image in (*found.images, *found.unreadable):
            if os.sep in image:
                names.append(image)
            else:
                beside += 1
        self._take(names, found, [number_of[image.partition(os.sep)[0]] for image in names])
        self._refuse_empty(found, class_of)
        notes = [found.note, *_odd_names(self.root, class_of)]
        if beside:
            what = "1 image that is" if beside == 1 else f"{beside:,} images that are"
            notes.append(f"{shown(self.root)}: left out {what} not in a class folder")
        self.note = "\n".join(note for note in notes if note) or None

    def _take(self, names: list[str], found: Walk, targets: Sequence[int]) -> None:
        target_N = np.array(targets, dtype=np.int64)
        order_N = np.argsort(target_N, kind="stable")
        # A fixed-width array, not a list: the reference counts of a million Python strings would make every forked
        # worker copy them.
        self._name_N = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)[order_N]
        self.target_N = target_N[order_N]
        self.unreadable, self.linked = found.unreadable, found.linked
        self._digest: str | None = None

    def _refuse_empty(self, found: Walk, class_of: dict[str, str]) -> None:
        filled = {self.classes[target] for target in np.unique(self.target_N)}
        empty = [folder for folder, name in class_of.items() if name not in filled]
        if empty:
            others = [name for name in found.others if name.startswith(empty[0] + os.sep)]
            instead = f"; found {counted(len(others), 'other file')}: {suffixes(others)}" if others else ""
            raise UserError(
                f"{shown(self.root / empty[0])}: this class folder has no images (looked for "
                f"{' '.join(sorted(IMAGE_SUFFIXES))}{instead}). Add images or remove the folder."
            )

    def __len__(self) -> int:
        return len(self.target_N)

    def label(self, i: int) -> str:
        return shown(self.path(i))

    def image(self, i: int, shrink: Shrink | None = None) -> Image:
        path = self.path(i)
        reason = self.unreadable.get(self.name_of(i)) if self.unreadable else None
        if reason:
            raise UserError(f"{shown(path)}: cannot be read: {reason}")
        return read_image(path, self.grey_range, shrink)

    def path(self, i: int) -> Path:
        return self.root / self.name_of(i)

    def name_of(self, i: int) -> str:
        """The path of an image below ``root``."""
        return os.fsdecode(bytes(self._name_N[i]))

    def digest(self) -> str:
        """Covers name, size and time of change of every file, but not the content: a million files take seconds."""
        if self._digest is None:
            digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
            columns = (self._name_N, self.target_N.tolist(), *self._sizes_and_times)
            for name, target, size, changed in zip(*columns, strict=True):
                digest.update(b"%s\0%d %d %d\n" % (bytes(name), target, size, changed))
            if any(map(may_be_deep, self._name_N)):
                digest.update(b"%d %r" % (CONVERSION, self.grey_range))
            self._digest = digest.hexdigest()
        return self._digest

    def fingerprint(self) -> str:
        """Covers name, class and size of every file, and the first bytes of some: a copy of the folder has the same."""
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        size_N = self._sizes_and_times[0]
        for name, target, size in zip(self._name_N, self.target_N.tolist(), size_N, strict=True):
            digest.update(b"%s\0%d %d\n" % (bytes(name), target, size))
        for i in range(0, len(self), -(-len(self) // LOOKED_INTO)):
            with suppress(OSError):
                if size_N[i] >= 0:
                    with open(self.path(i), "rb") as file:
                        digest.update(file.read(LOOKED_AT))
        return digest.hexdigest()

    @cached_property
    def _sizes_and_times(self) -> tuple[array, array]:
        """Size and time of each file; -1 if it is not a file, such as a broken link, which counts as a bad image."""
        sizes, times = array("q"), array("q")
        for name in self._name_N:
            size, changed = -1, -1
            with suppress(OSError):
                status = os.stat(os.path.join(os.fsencode(self.root), bytes(name)))
                if stat.S_ISREG(status.st_mode):
                    size, changed = status.st_size, status.st_mtime_ns
            sizes.append(size)
            times.append(changed)
        return sizes, times


class PictureSource(FolderSource):
    """All images in a folder and the folders below it, without classes: ``target_N`` is all 0."""

    classes: tuple[str, ...] = ("",)

    def __init__(self, root: Path, grey_range: GreyRange | None = None):
        self.grey_range = grey_range
        self.name, self.split, self.root = str(root), "pictures", Path(root).absolute()
        if not is_there(self.root):
            what = "is not a folder" if self.root.exists() else "does not exist"
            raise UserError(f"{shown(self.root)} {what}: give a folder of images")
        found = walk(self.root)
        names = [*found.images, *found.unreadable]
        if not names:
            wanted = " ".join(sorted(IMAGE_SUFFIXES))
            left_out = f"\n{found.note}" if found.note else ""
            raise UserError(
                f"{shown(self.root)}: no images here or in the folders below (looked for {wanted}){left_out}"
            )
        self._take(names, found, [0] * len(names))
        self.note = found.note

    def label(self, i: int) -> str:
        """The path below the folder."""
        return printable(self.name_of(i))


def may_be_deep(name: bytes | str) -> bool:
    """Whether an image of that name can have more than 8 bits or a transparent colour."""
    return os.path.splitext(os.fsdecode(name))[1].lower() not in (".jpg", ".jpeg", ".jpe", ".jfif")


def refuse_unreadable(source: FolderSource) -> None:
    """``UserError`` if a folder in ``source`` could not be entered: a run without its images would be another run."""
    if source.unreadable:
        name, reason = next(iter(source.unreadable.items()))
        raise UserError(
            f"{shown(source.root)}: {counted(len(source.unreadable), 'entry', 'entries')} cannot be read, such as "
            f"{shown(name)}: {reason}. Make it readable or remove it, or leave it out with --skip-bad."
        )


def one_form(name: str) -> str:
    """A class name in the normal form of Unicode, with bytes that are not characters as escapes."""
    return unicodedata.normalize("NFC", printable(name))


def loosely(name: str) -> str:
    """A name without its case and spaces: equal for two names that differ in nothing else."""
    return " ".join(one_form(name).casefold().split())


def _classes_of_folders(found: Walk, known: Iterable[str]) -> dict[str, str]:
    """The class of each class folder; names that differ only in their Unicode form are one class."""
    for name, reason in found.unreadable.items():
        if os.sep not in name:
            raise UserError(f"{shown(found.root / name)}: this class cannot be read: {reason}")
    folders = [folder for folder in found.folders if os.sep not in folder]
    if not folders:
        raise UserError(f"{shown(found.root)}: no class folders here. It needs one folder of images for every class.")
    names = {one_form(name): name for name in known}
    return {folder: names.setdefault(one_form(folder), printable(folder)) for folder in folders}


def _odd_names(root: Path, class_of: dict[str, str]) -> list[str]:
    """Notes for the user on class folders whose names are nearly the same."""
    notes = []
    by_class: dict[str, list[str]] = {}
    by_case: dict[str, set[str]] = {}
    for folder, name in class_of.items():
        by_class.setdefault(name, []).append(folder)
        by_case.setdefault(loosely(name), set()).add(name)
    twice = [name for name, folders in by_class.items() if len(folders) > 1]
    if twice:
        notes.append(f"{shown(root)}: two folders named {twice[0]}, in two Unicode forms, count as one class")
    alike = [sorted(names) for names in by_case.values() if len(names) > 1]
    if alike:
        notes.append(f"{shown(root)}: {' and '.join(map(repr, alike[0]))} are different classes: was one meant?")
    return notes


def require_folders(dataset: str, root: Path, names: Sequence[str], wanted: str) -> None:
    """``UserError`` if ``root`` lacks one of the folders ``names``; ``ImagesGone`` if it lacks all or all are empty."""
    dataset, place = shown(dataset), shown(root)
    if not is_there(root):
        if root.exists():
            raise UserError(f"data set '{dataset}': {place} is not a folder. {wanted}")
        raise ImagesGone(f"data set '{dataset}': {place} does not exist. {wanted}")
    missing = [name for name in names if not is_there(root / name)]
    if missing:
        kind = ImagesGone if len(missing) == len(names) else UserError
        others = sorted(shown(name) for name in os.listdir(root) if not is_system(name) and name not in names)
        there = f", but has {few(others)}" if others else ""
        raise kind(f"data set '{dataset}': {place} has no folder named '{missing[0]}'{there}. {wanted}")
    if not any(holds_anything(root / name) for name in names):
        raise ImagesGone(
            f"data set '{dataset}': no class folders or images in {' or '.join(names)} of {place}: is a drive not "
            f"mounted? {wanted}"
        )
