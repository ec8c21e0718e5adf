"""Searches folders for images: it visits each real folder once, and reports all that it leaves out."""

from __future__ import annotations

import errno
import os
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from fastdhm.errors import UserError, counted
from fastdhm.system.paths import shown

# torchvision's list, and other suffixes in use for the same formats.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)
# Suffixes of image formats that cannot be read; files of other suffixes are notes, lists and the like.
OTHER_IMAGES = frozenset(
    (
        *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpf", ".jpx", ".jxr", ".tga", ".psd", ".svg"),
        *(".dcm", ".nii", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
    )
)
# Files that systems leave in folders of images. All names that begin with a dot count as such, too.
SYSTEM_NAMES = (
    *("@eaDir", "@tmp", "@sharebin", "#recycle", "#snapshot"),  # Synology
    *("@Recycle", "@Recently-Snapshot", "@__thumb", "@Transcode"),  # QNAP
    *("__MACOSX", "Network Trash Folder", "Temporary Items", "TheVolumeSettingsFolder", "TheFindByContentFolder"),
    *("Desktop DB", "Desktop DF", "Icon\r"),  # macOS, as those above
    *("$RECYCLE.BIN", "RECYCLER", "System Volume Information", "Thumbs.db", "ehthumbs.db", "desktop.ini"),  # Windows
    *("FOUND.000", "DfsrPrivate", "$Extend", "LOST.DIR"),  # Windows after a check, and its servers; Android
    *("~snapshot", "~latest", "lost+found"),  # NetApp, Hitachi; ext4
    *("__pycache__", "CVS"),
)
_ANY_CASE = {name.casefold() for name in SYSTEM_NAMES if not name.isalpha()}
_AS_WRITTEN = {name for name in SYSTEM_NAMES if name.isalpha()}  # in lower case such a word may be a class
# Errors of a drive that is gone, if it answers at all.
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENODEV, errno.ENXIO}


class ImagesGone(UserError):
    """There are no images at all: their folder is missing or empty, perhaps because a drive is not mounted."""


def is_system(name: str) -> bool:
    """Whether a file or folder of that name was made by an operating system and not by the user."""
    return name.startswith(".") or name in _AS_WRITTEN or name.casefold() in _ANY_CASE


def is_there(folder: Path) -> bool:
    """Whether ``folder`` is a folder that can be read; a ``UserError`` if that cannot be found out."""
    try:
        with os.scandir(folder):
            return True
    except OSError as error:
        if error.errno in GONE:
            return False
        raise UserError(f"{shown(folder)}: cannot be read: {error.strerror}") from error


def holds_anything(folder: Path) -> bool:
    """Whether ``folder`` holds anything but files of an operating system."""
    return is_there(folder) and not all(map(is_system, os.listdir(folder)))


@dataclass
class Walk:
    """The content of a folder. Names are relative to it and in order: the files of a folder, then its folders."""

    root: Path
    images: list[str] = field(default_factory=list)
    """Files with an image suffix, readable or not."""
    folders: list[str] = field(default_factory=list)
    """All folders that were entered, without the root; if the walk was not deep, the folders in the root."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Folders that could not be entered, and broken links that may have led to folders, with the reason."""
    system: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    """Links to folders whose images already count elsewhere."""
    others: list[str] = field(default_factory=list)
    """Files without an image suffix."""

    @property
    def note(self) -> str | None:
        """What was left out, in one sentence: counts and an example of each kind."""
        unread = [name for name in self.others if _suffix(name) in OTHER_IMAGES]
        plain = [name for name in self.others if _suffix(name) not in OTHER_IMAGES]
        parts = [
            _example(unread, "unread image", f" ({suffixes(unread)}: convert to JPEG or PNG)"),
            _example(plain, "other file", f" ({suffixes(plain)})"),
            _example(self.system, "hidden or system name"),
            _example(self.linked, "link", " to folders that already count elsewhere"),
        ]
        said = "; ".join(part for part in parts if part)
        return f"{shown(self.root)}: left out {said}" if said else None


def walk(root: Path, *, deep: bool = True) -> Walk:
    """The content of ``root`` and, if ``deep``, of the folders below it.

    Links to folders are followed after all real folders, if they lead out of ``root``. A link back into ``root``, or to
    a folder above it, is not followed: it would count images twice, and in a wrong class.
    """
    found, inside, entered = Walk(root), [], set()
    above = {_key(parent) for parent in Path(os.path.realpath(root)).parents}
    real: deque[str] = deque([""])
    links: deque[str] = deque()
    while real or links:
        name, is_link = (real.popleft(), False) if real else (links.popleft(), True)
        try:
            key = _key(root / name)
            if (key[1] and key in entered) or (is_link and key in above):
                found.linked.append(name)
                continue
            with os.scandir(root / name) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.unreadable[name] = error.strerror or str(error)
            continue
        entered.add(key)
        images: list[str] = []
        for entry in listed:
            _sort_in(entry, os.path.join(name, entry.name), found, images, (real, links) if deep else None)
        inside.append((tuple(name.split(os.sep)) if name else (), name, images))
    inside.sort(key=lambda folder: folder[0])
    found.folders += [name for _, name, _ in inside if name]
    found.images = [image for _, _, images in inside for image in images]
    if "" in found.unreadable:
        raise UserError(f"{shown(root)}: cannot be read: {found.unreadable['']}")
    return found


def _sort_in(entry: os.DirEntry, name: str, found: Walk, images: list[str], further: tuple[deque, deque] | None):
    if is_system(entry.name):
        found.system.append(name)
        return
    try:
        is_link, is_folder = entry.is_symlink(), entry.is_dir()
    except OSError as error:
        found.unreadable[name] = error.strerror or str(error)
        return
    if is_folder:
        found.folders.append(name) if further is None else further[is_link].append(name)
    elif _suffix(name) in IMAGE_SUFFIXES:
        images.append(name)
    elif is_link and not _suffix(name) and not os.path.exists(entry.path):
        found.unreadable[name] = "a broken link"
    else:
        found.others.append(name)


def _key(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def suffixes(names: list[str], most: int = 3) -> str:
    """The suffixes of some names, the most frequent first."""
    counts = Counter(_suffix(name) or "no suffix" for name in names).most_common()
    return ", ".join(shown(suffix) for suffix, _ in counts[:most]) + (", ..." if len(counts) > most else "")


def _example(names: list[str], what: str, detail: str = "") -> str | None:
    return f"{counted(len(names), what)}{detail}, such as {shown(names[0])}" if names else None
