"""Re-identification sets: the file name gives identity and camera of each image, as in Market-1501.

Legend: N samples, K classes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fastdhm.data.sources.folder import FolderSource, require_folders
from fastdhm.data.sources.readable import SubsetSource
from fastdhm.data.sources.source import REID_DATASETS, Source, number_classes
from fastdhm.data.sources.walk import ImagesGone, is_there, walk
from fastdhm.errors import UserError, counted, few, unknown
from fastdhm.system.paths import expanded, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
JUNK, DISTRACTOR = -1, 0
SWAPPED = f"Perhaps '{FOLDERS['query']}' and '{FOLDERS['gallery']}' are swapped, or from different data sets"
DIGITS = 18  # any number of so many digits fits into an int64
# 0002_c1s1_000451_03.jpg (Market-1501), 0001_c2_f0046182.jpg (Duke), 0003_c1_21.png (CUHK03); and MSMT17's, whose third
# number is the camera: 0000_000_01_0303morning_0008_0.jpg
NAME = re.compile(
    rf"(?:(-1|\d{{1,{DIGITS}}})_c(\d{{1,{DIGITS}}})(?:\D.*)?|(\d{{4}})_\d{{3}}_(\d\d)_\d{{4}}[a-z]+_.*)\.\w+",
    re.IGNORECASE,
)
NOT_DOWNLOADED = (
    "DukeMTMC-reID was withdrawn by its makers in 2019 over the privacy of the people in it, and is never downloaded. "
    "If you have a copy and may use it, give its folder with --data-dir"
)


Labels = tuple[np.ndarray, np.ndarray]  # identity and camera of each image


@dataclass(frozen=True)
class _Published:
    """The possible folders of a published data set, and the counts in its paper."""

    folders: tuple[str, ...]
    train_identities: int
    images: dict[str, int]
    where: str


PUBLISHED = {
    "market1501": _Published(
        folders=(".", "Market-1501-v15.09.15", "Market-1501", "market1501"),
        train_identities=751,
        images={"train": 12_936, "query": 3_368, "gallery": 19_732},
        where="Unpack Market-1501-v15.09.15.zip there",
    ),
    "dukemtmc": _Published(
        folders=(".", "DukeMTMC-reID", "dukemtmc"),
        train_identities=702,
        images={"train": 16_522, "query": 2_228, "gallery": 17_661},
        where=NOT_DOWNLOADED,
    ),
}


class ReidSource(Source, Protocol):
    """A source that also knows the identity and the camera of each image."""

    ids_N: np.ndarray  # int64, as in the file names: -1 is junk, 0 a distractor
    cams_N: np.ndarray  # int64


@dataclass(frozen=True)
class ReidData:
    """A re-identification set: the training images, and the gallery that is searched for each query."""

    train: ReidSource
    query: ReidSource
    gallery: ReidSource

    @property
    def notes(self) -> list[str]:
        """Messages for the user."""
        return [source.note for source in (self.train, self.query, self.gallery) if source.note]


class ReidFolderSource(FolderSource):
    """The images of one folder, in order of their names, with the classes of :func:`number_classes`."""

    def __init__(self, root: Path, files: list[str], name: str, split: str, note: str | None = None):
        """All names in ``files`` must parse (see :func:`parse_name`)."""
        self.name, self.split, self.root, self.note = name, split, Path(root).absolute(), note
        self._name_N = np.array([os.fsencode(file) for file in files])  # see FolderSource on why not a list
        parsed = [parse_name(file) for file in files]
        self.ids_N, self.cams_N = (np.array(column, dtype=np.int64) for column in zip(*parsed, strict=True))
        self.target_N, self.classes = number_classes(split, self.ids_N, self.cams_N)
        self.unreadable, self._digest = {}, None


class HeldSource(SubsetSource):
    """Some samples of a re-identification source, as another split; the identities keep their targets."""

    def __init__(self, source: ReidSource, kept_N: np.ndarray, split: str):
        super().__init__(source, kept_N)
        self.split, self.note = split, None
        self.ids_N, self.cams_N = source.ids_N[kept_N], source.cams_N[kept_N]

    def digest(self) -> str:
        return hashlib.sha256(super().digest().encode() + self._kept_N.tobytes()).hexdigest()

    def fingerprint(self) -> str | None:
        whole = super().fingerprint()
        return whole and hashlib.sha256(whole.encode() + self._kept_N.tobytes()).hexdigest()


def hold_out(train: ReidSource) -> tuple[HeldSource, HeldSource]:
    """Training and validation source: the middle image of every identity with three or more images is held out.

    Both keep all classes, so a classifier trained on one can be evaluated on the other. Frames of one walk look alike:
    the validation error says whether training works, not how well the network recognises people it has not seen.
    """
    order_N = np.argsort(train.target_N, kind="stable")
    count_K = np.bincount(train.target_N, minlength=len(train.classes))
    middle_K = np.cumsum(count_K) - count_K + count_K // 2
    held = np.sort(order_N[middle_K[count_K >= 3]])
    if not len(held):
        raise UserError(
            f"data set '{shown(train.name)}': no identity has three training images, so none can be held out for "
            "validation"
        )
    kept = np.setdiff1d(np.arange(len(train)), held)
    return HeldSource(train, kept, "train"), HeldSource(train, held, "val")


def sightings(classes: Sequence[str], target_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``ids_N`` and ``cams_N`` of a query or gallery source, from its classes and targets."""
    seen_K2 = np.array([[int(part) for part in name.split("_c")] for name in classes], dtype=np.int64)
    return seen_K2[target_N, 0], seen_K2[target_N, 1]


def parse_name(name: str) -> tuple[int, int] | None:
    """Identity and camera in a name such as ``0002_c1s1_000451_03.jpg``; None if the name has another form."""
    match = NAME.fullmatch(name)
    return (int(match[1] or match[3]), int(match[2] or match[4])) if match else None


class CannotRank(UserError):
    """Queries and a gallery that cannot be ranked; the training images may be fine."""


def load_reid(dataset: str, data_dir: Path, *, judged: bool = True) -> ReidData:
    """The re-identification set ``dataset``; nothing is ever downloaded.

    Raises:
        ValueError: a missing or empty folder, file names that do not parse, or identities in both training and test
            images.
        CannotRank: only if ``judged``, see :func:`check_rankable`.
    """
    kind, _, argument = dataset.partition(":")
    if kind == "reid-synthetic":
        return _load_synthetic(dataset, argument)
    if dataset in PUBLISHED:
        data = _load_folders(_published_root(dataset, expanded(data_dir)), dataset)
    elif kind == "reid-folder" and argument:
        data = _load_folders(expanded(argument), dataset)
    elif kind == "reid-folder":
        raise UserError(f"data set '{dataset}' needs a path: reid-folder:PATH, where PATH holds {_wanted()}")
    else:
        raise unknown("re-identification data set", dataset, REID_DATASETS)
    check_unseen(data)
    if judged:
        query, gallery = data.query, data.gallery
        check_rankable(dataset, (query.ids_N, query.cams_N), (gallery.ids_N, gallery.cams_N))
    return data


def check_unseen(data: ReidData) -> None:
    """Refuse identities that are in both training and test images."""
    people = np.union1d(data.query.ids_N, data.gallery.ids_N)
    both = np.intersect1d(np.unique(data.train.ids_N), people[(people != JUNK) & (people != DISTRACTOR)])
    if len(both):
        raise UserError(
            f"data set '{shown(data.train.name)}': {counted(len(both), 'identity is', 'identities are')} in both "
            f"training and test images: {few([f'{i:04}' for i in both])}. Remove them from one of the two"
        )


def check_rankable(name: str, query: Labels, gallery: Labels) -> None:
    """Refuse queries and a gallery that should not be ranked; ``Labels`` are identities and cameras.

    Raises:
        CannotRank: junk or distractors among the queries, or no query has its identity in the gallery on another
            camera.
    """
    ids_N, name = query[0], shown(name)
    junk, strangers = int((ids_N == JUNK).sum()), int((ids_N == DISTRACTOR).sum())
    if junk:
        raise CannotRank(
            f"data set '{name}': {counted(junk, 'query is', 'queries are')} junk (identity -1), which belongs only in "
            f"a gallery. {SWAPPED}"
        )
    if strangers:
        raise CannotRank(
            f"data set '{name}': {counted(strangers, 'query is a distractor', 'queries are distractors')} (identity "
            "0). They are different people and belong only in a gallery: remove them"
        )
    if not has_match(query, gallery).any():
        cameras = np.union1d(query[1], gallery[1])
        why = f"all images are from camera {cameras[0]}" if len(cameras) == 1 else SWAPPED
        raise CannotRank(
            f"data set '{name}': none of {len(ids_N):,} queries has an image of its identity from another camera "
            f"among the {len(gallery[0]):,} gallery images, so nothing can be ranked: {why}"
        )


def has_match(query: Labels, gallery: Labels) -> np.ndarray:
    """Whether the gallery has each query's identity from another camera: ``bool [N]``."""
    seen = set(zip(*(column.tolist() for column in gallery), strict=True))
    cameras = Counter(identity for identity, _ in seen)
    queries = zip(*(column.tolist() for column in query), strict=True)
    return np.array([cameras[identity] > ((identity, camera) in seen) for identity, camera in queries])


def _load_synthetic(dataset: str, argument: str) -> ReidData:
    from fastdhm.data.sources.drawn_people import synthetic_reid

    if dataset != "reid-synthetic" and (not argument.isdecimal() or int(argument) < 4):
        raise UserError(
            f"data set is '{dataset}': write reid-synthetic:N, where N, the number of training identities, is 4 or more"
        )
    identities = int(argument or 32)
    return ReidData(*synthetic_reid(identities, max(2, identities // 2)))


def _published_root(dataset: str, data_dir: Path) -> Path:
    published = PUBLISHED[dataset]
    for folder in published.folders:
        if any(is_there(data_dir / folder / name) for name in FOLDERS.values()):
            return data_dir / folder
    looked = ", ".join(shown(data_dir / folder) for folder in published.folders)
    raise ImagesGone(f"data set '{dataset}' is not in any of {looked}: one needs {_wanted()}. {published.where}")


def _wanted() -> str:
    return (
        f"{FOLDERS['train']}/, {FOLDERS['query']}/ and {FOLDERS['gallery']}/, with names like 0002_c1s1_000451_03.jpg"
    )


def _load_folders(root: Path, dataset: str) -> ReidData:
    require_folders(dataset, root, tuple(FOLDERS.values()), f"It needs {_wanted()}")
    train, query, gallery = (_load_split(root / folder, dataset, split) for split, folder in FOLDERS.items())
    data = ReidData(train, query, gallery)
    if dataset in PUBLISHED:
        _compare_with_published(data, PUBLISHED[dataset])
    without = int((~has_match((query.ids_N, query.cams_N), (gallery.ids_N, gallery.cams_N))).sum())
    if without:
        guess = f". {SWAPPED}" if 2 * without > len(query) or len(query) > len(gallery) else ""
        have = "has" if without == 1 else "have"
        _add_note(
            query, f"{without:,} of {len(query):,} queries {have} no match from another camera: not evaluated{guess}"
        )
    return data


def _load_split(folder: Path, dataset: str, split: str) -> ReidFolderSource:
    found = walk(folder, deep=False)
    images = found.images
    if found.unreadable:
        name, reason = next(iter(found.unreadable.items()))
        raise UserError(f"{shown(folder / name)}: cannot be read: {reason}. Make it readable or remove it")
    parsed = {name: parse_name(name) for name in images}
    wrong = [name for name, who in parsed.items() if who is None]
    if wrong:
        raise UserError(
            f"{shown(folder)}: {len(wrong):,} of {len(images):,} file names do not give identity and camera as "
            f"0002_c1s1_000451_03.jpg does, in at most {DIGITS} digits: {few([shown(name) for name in wrong])}. "
            "Rename or remove them"
        )
    notes = [found.note] if found.note else []
    inside = ""
    if found.folders:
        ignored = counted(len(found.folders), "folder in it is ignored", "folders in it are ignored")
        inside = f"{ignored}, such as {shown(found.folders[0])}"
        notes.append(f"{shown(folder)}: {inside}")
    if split == "train":
        people = [name for name, who in parsed.items() if who and who[0] != JUNK]
        if len(people) < len(images):
            junk = counted(len(images) - len(people), "junk image")
            notes.append(f"{shown(folder)}: left out {junk} (identity -1)")
        images = people
    if not images:
        instead = f"; {inside}" if inside else ""
        raise UserError(f"{shown(folder)}: no images here{instead}. It needs names such as 0002_c1s1_000451_03.jpg")
    return ReidFolderSource(folder, images, dataset, split, "; ".join(notes) or None)


def _compare_with_published(data: ReidData, published: _Published) -> None:
    if len(data.train.classes) != published.train_identities:
        _add_note(
            data.train,
            f"{len(data.train.classes):,} training identities, but {published.train_identities:,} were published",
        )
    for source in (data.train, data.query, data.gallery):
        if len(source) != published.images[source.split]:
            wanted = published.images[source.split]
            _add_note(source, f"{source.name}: {len(source):,} {source.split} images, but {wanted:,} were published")


def _add_note(source: ReidSource, note: str) -> None:
    source.note = f"{source.note}; {note}" if source.note else note
