"""A folder with one folder of images for every class, and a folder of images of no class.

Legend: N samples.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastdhm.data.images import IMAGE_SUFFIXES, printable, read_image
from fastdhm.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


class FolderSource:
    """``root/<class>/**/<image>``: classes and files in sorted order, links followed, dot names skipped.

    Files without an image's suffix (notes, thumbnails' databases, annotations) are left out and counted in ``note``;
    every file with one counts as an image and has to decode.
    """

    def __init__(self, root: Path, name: str, split: str):
        self.name, self.split, self.root = name, split, Path(root).absolute()
        self.classes = _class_names(self.root)
        names, targets, ignored = [], [], []
        for target, class_name in enumerate(self.classes):
            found, other = _image_files(self.root, class_name)
            if not found:
                raise UserError(
                    f"{self.root / class_name}: this class folder holds no image "
                    f"(looked for {' '.join(sorted(IMAGE_SUFFIXES))}). Add images or remove the folder."
                )
            names += found
            targets += [target] * len(found)
            ignored += other
        # A fixed-width array, not a list: a million Python strings would be copied into every forked worker by their
        # reference counts alone.
        self._name_N = np.array([os.fsencode(name) for name in names])
        self.target_N = np.array(targets, dtype=np.int64)
        self.note = _ignored_note(self.root, ignored)
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.target_N)

    def label(self, i: int) -> str:
        return printable(self._path(i))

    def image(self, i: int) -> Image:
        return read_image(self._path(i))

    def _path(self, i: int) -> Path:
        return self.root / os.fsdecode(bytes(self._name_N[i]))

    def digest(self) -> str:
        """Over every file's name, size and time of change, not its content: a million files take seconds."""
        if self._digest is None:
            digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
            for name, target in zip(self._name_N, self.target_N.tolist(), strict=True):
                try:
                    status = os.stat(os.path.join(os.fsencode(self.root), bytes(name)))
                    size, changed = status.st_size, status.st_mtime_ns
                except OSError:  # a broken link, say: it is an image that cannot be read, and reported as one
                    size, changed = -1, -1
                digest.update(b"%s\0%d %d %d\n" % (bytes(name), target, size, changed))
            self._digest = digest.hexdigest()
        return self._digest


class PictureSource(FolderSource):
    """Every image in a folder and the folders below it, of no class: ``target_N`` is 0 throughout."""

    classes = ("",)

    def __init__(self, root: Path):
        self.name, self.split, self.root = str(root), "pictures", Path(root).absolute()
        if not self.root.is_dir():
            what = "is not a folder" if self.root.exists() else "does not exist"
            raise UserError(f"{self.root} {what}: name a folder of images")
        names, ignored = _image_files(self.root, "")
        if not names:
            wanted = " ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"{self.root}: no image here or in the folders below (looked for {wanted})")
        self._name_N = np.array([os.fsencode(name) for name in names])
        self.target_N = np.zeros(len(names), dtype=np.int64)
        self.note = _ignored_note(self.root, ignored)
        self._digest = None

    def label(self, i: int) -> str:
        """The path below the folder."""
        return printable(os.fsdecode(bytes(self._name_N[i])))


def _class_names(root: Path) -> tuple[str, ...]:
    try:
        names = tuple(sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")))
    except OSError as error:
        raise UserError(f"{root}: cannot be read: {error.strerror}") from error
    if not names:
        raise UserError(f"{root}: no class folders here. It should hold one folder of images for every class.")
    return names


def _image_files(root: Path, below: str) -> tuple[list[str], list[str]]:
    """The image files and the other files in a folder below ``root`` ("": itself), relative to ``root``."""
    images, others = [], []
    for folder, subfolders, files in os.walk(root / below, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = os.path.relpath(folder, root)
        for name in sorted(name for name in files if not name.startswith(".")):
            is_image = os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
            (images if is_image else others).append(name if relative == "." else os.path.join(relative, name))
    return images, others


def _ignored_note(root: Path, ignored: list[str]) -> str | None:
    if not ignored:
        return None
    files = "1 file is" if len(ignored) == 1 else f"{len(ignored):,} files are"
    return f"{root}: {files} left out for having no image suffix, such as {printable(ignored[0])}"
