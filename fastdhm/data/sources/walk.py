"""The one walk over folders of images: each real folder once, and nothing left out without a word."""

from __future__ import annotations

import errno
import os
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from fastdhm.errors import UserError
from fastdhm.system.paths import printable

# torchvision's list and the other names under which the same formats are found in the wild.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)
# Images too, in formats that are not read: to be told apart from notes and lists.
OTHER_IMAGES = frozenset(
    (
        *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpf", ".jpx", ".jxr", ".tga", ".psd", ".svg"),
        *(".dcm", ".nii", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
    )
)
# What systems leave in folders of images; names that begin with a dot are all theirs.
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
# What a drive that is gone answers with, where it answers at all.
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENODEV, errno.ENXIO}


class ImagesGone(UserError):
    """The images are not there at all: their folder is missing, or empty as where a drive is not mounted."""


def is_system(name: str) -> bool:
    """Whether a file or folder of that name was left by a system and not by whoever collected the images."""
    return name.startswith(".") or name in _AS_WRITTEN or name.casefold() in _ANY_CASE


def is_there(folder: Path) -> bool:
    """Whether ``folder`` is one that can be looked into; a ``UserError`` where only its owner or its drive knows."""
    try:
        with os.scandir(folder):
            return True
    except OSError as error:
        if error.errno in GONE:
            return False
        raise UserError(f"{printable(folder)}: cannot be read: {error.strerror}") from error


def holds_anything(folder: Path) -> bool:
    """Whether there is something in ``folder`` that a system did not leave there."""
    return is_there(folder) and not all(map(is_system, os.listdir(folder)))


@dataclass
class Walk:
    """What is in a folder; names are relative to it and in order: a folder's files, then the folders in it."""

    root: Path
    images: list[str] = field(default_factory=list)
    """Files with an image's suffix, whether they can be read or not."""
    folders: list[str] = field(default_factory=list)
    """All that were entered, but for the root; those in it, if the walk was not deep."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Folders that could not be entered, and links to nothing that may have led to folders, with the reason."""
    system: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    """Links to folders whose images are or would be taken elsewhere."""
    others: list[str] = field(default_factory=list)
    """Files without an image's suffix."""

    @property
    def note(self) -> str | None:
        """What was left out, in one sentence: counts and an example of each kind."""
        unread = [name for name in self.others if _suffix(name) in OTHER_IMAGES]
        plain = [name for name in self.others if _suffix(name) not in OTHER_IMAGES]
        parts = [
            _counted(unread, "unread image", f" ({suffixes(unread)}: convert to JPEG or PNG)"),
            _counted(plain, "other file", f" ({suffixes(plain)})"),
            _counted(self.system, "hidden or system name"),
            _counted(self.linked, "link", " to folders that are taken elsewhere"),
        ]
        said = "; ".join(part for part in parts if part)
        return f"{printable(self.root)}: left out {said}" if said else None


def walk(root: Path, *, deep: bool = True) -> Walk:
    """What ``root`` and, if ``deep``, the folders below it hold.

    Links to folders are followed where they lead away from ``root``, after all real folders; one that leads back into
    it, or to a folder above it, would bring images a second time, and under another's name.
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
        raise UserError(f"{printable(root)}: cannot be read: {found.unreadable['']}")
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
        found.unreadable[name] = "a link to nothing"
    else:
        found.others.append(name)


def _key(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def suffixes(names: list[str], shown: int = 3) -> str:
    """The suffixes of some names, the most frequent first."""
    counts = Counter(_suffix(name) or "no suffix" for name in names).most_common()
    return ", ".join(printable(suffix) for suffix, _ in counts[:shown]) + (", ..." if len(counts) > shown else "")


def _counted(names: list[str], what: str, detail: str = "") -> str | None:
    if not names:
        return None
    return f"{len(names):,} {what}{'s' * (len(names) > 1)}{detail}, such as {printable(names[0])}"
