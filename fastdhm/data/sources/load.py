"""Opens the sources of a data set by its name.

Legend: N samples, H height, W width, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastdhm.data.sources.arrays import load_cifar, load_fashion_mnist
from fastdhm.data.sources.folder import FolderSource, loosely, require_folders
from fastdhm.data.sources.source import DATASETS, SPLITS, Source, is_reid
from fastdhm.data.sources.synthetic import SyntheticSource
from fastdhm.errors import UserError, few, unknown
from fastdhm.system.paths import expanded, shown

if TYPE_CHECKING:
    from fastdhm.data.images.grey import GreyRange


def load_splits(
    dataset: str, data_dir: Path, splits: Sequence[str], grey_range: GreyRange | None = None
) -> dict[str, Source]:
    """The sources of ``splits`` of ``dataset``, by name; downloads go to ``data_dir``. See ``grey`` on ``grey_range``.

    In a re-identification set, ``train`` has all published training images. ``val`` has one of them for each identity
    with three or more (``people.hold_out``), so its error only says whether training works. ``rest`` is ``train``
    without ``val``.
    """
    if not is_reid(dataset):
        sources = dict(zip(SPLITS, _load_pair(dataset, data_dir), strict=True))
        _take_grey(sources, grey_range)
        return {split: sources[split] for split in splits}
    from fastdhm.data.sources.people import hold_out, load_reid

    data = load_reid(dataset, data_dir, judged=not {"query", "gallery"}.isdisjoint(splits))
    sources = {"train": data.train, "query": data.query, "gallery": data.gallery}
    _take_grey(sources, grey_range)
    if not sources.keys() >= set(splits):
        sources["rest"], sources["val"] = hold_out(data.train)
    return {split: sources[split] for split in splits}


def _take_grey(sources: dict[str, Source], grey_range: GreyRange | None) -> None:
    if grey_range is None:
        return
    for source in sources.values():
        if not isinstance(source, FolderSource):
            low, high = grey_range
            raise UserError(
                f"grey range is {low:g},{high:g}, but data set '{source.name}' has no greyscale of more than 8 bits"
            )
        source.grey_range = grey_range


def load_sources(dataset: str, data_dir: Path) -> tuple[Source, Source]:
    """The training and the validation source of ``dataset``: see :func:`load_splits`."""
    train, val = load_splits(dataset, data_dir, SPLITS).values()
    return train, val


def _load_pair(dataset: str, data_dir: Path) -> tuple[Source, Source]:
    kind, _, argument = dataset.partition(":")
    data_dir = expanded(data_dir)
    if kind == "folder" and argument:
        return _load_folder(dataset, expanded(argument))
    if kind == "synthetic":
        train_N, num_classes = _synthetic_counts(dataset, argument)
        return SyntheticSource("train", train_N, num_classes), SyntheticSource("val", train_N // 4, num_classes)
    if dataset == "fashion-mnist":
        return load_fashion_mnist(data_dir)
    if dataset in ("cifar10", "cifar100"):
        return load_cifar(dataset, data_dir)
    if dataset == "imagenet":
        here = (data_dir / "train").is_dir() and (data_dir / "val").is_dir()
        return _load_folder(dataset, data_dir if here else data_dir / "imagenet")
    raise unknown_dataset(dataset)


def unknown_dataset(dataset: str) -> UserError:
    """The error for a name that is not a data set."""
    if dataset in ("folder", "folder:"):
        return UserError(
            "data set 'folder' needs a path: folder:PATH, where PATH holds train/ and val/ with one folder per class"
        )
    if (Path(dataset) / "bounding_box_train").is_dir():
        return UserError(f"unknown data set '{dataset}': for a re-identification set write 'reid-folder:{dataset}'")
    if Path(dataset).is_dir():
        return UserError(f"unknown data set '{dataset}': for a folder of images write 'folder:{dataset}'")
    return unknown("data set", dataset, DATASETS)


def _synthetic_counts(dataset: str, argument: str) -> tuple[int, int | None]:
    if dataset == "synthetic":
        return 2048, None
    numbers = [int(part) if part.isdecimal() else 0 for part in argument.split(":")]
    if len(numbers) > 2 or numbers[0] < 4 or not 2 <= numbers[-1] <= numbers[0]:
        raise UserError(
            f"data set is '{dataset}': write synthetic:N, where N, the number of training images, is 4 or more, or "
            "synthetic:N:K, where K, the number of classes, is from 2 to N"
        )
    return numbers[0], numbers[1] if len(numbers) == 2 else None


def _load_folder(dataset: str, root: Path) -> tuple[Source, Source]:
    wanted = "It needs train/ and val/, each with one folder of images for every class."
    require_folders(dataset, root, SPLITS, wanted)
    train = FolderSource(root / "train", dataset, "train")
    val = FolderSource(root / "val", dataset, "val", train.classes)
    if train.classes != val.classes:
        raise _classes_differ(dataset, root, train, val)
    if os.path.samefile(train.root, val.root):
        same = (
            f"{shown(train.root)} and {shown(val.root)} are the same folder: the validation error says nothing about "
            "new images"
        )
        val.note = "\n".join(filter(None, (val.note, same)))
    return train, val


def _classes_differ(dataset: str, root: Path, train: FolderSource, val: FolderSource) -> UserError:
    only_train, only_val = (sorted({*a.classes} - {*b.classes}) for a, b in ((train, val), (val, train)))
    alike = {loosely(name): name for name in only_val}
    pairs = [(name, alike[loosely(name)]) for name in only_train if loosely(name) in alike]
    links = [a.root / name for a, only in ((train, only_val), (val, only_train)) for name in a.linked if name in only]
    paths = [root / split / name for split in SPLITS for name in only_train + only_val]
    files = [path for path in paths if path.is_file()]
    remedy = "Each class needs a folder in both: add the images, or remove the folder."
    if pairs:
        remedy = f"{pairs[0][0]!r} and {pairs[0][1]!r} differ in case or spaces: give them one name."
    elif files:
        remedy = f"{shown(files[0])} is a file: put a folder of images there."
    elif links:
        remedy = f"{shown(links[0])} is a link to a folder that already counts elsewhere: put other images there."
    return UserError(
        f"data set '{shown(dataset)}': the class folders of {shown(root)}/train and {shown(root)}/val differ. "
        f"Only in train: {few(only_train)}; only in val: {few(only_val)}. {remedy}"
    )
