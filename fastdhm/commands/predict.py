"""``fastdhm predict``: the likeliest classes of images, in a file.

Legend: B batch.
"""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdhm.data.images.pool import WorkerPool, in_hand
from fastdhm.data.sources.folder import PictureSource
from fastdhm.engine.device import pick_workers
from fastdhm.engine.predictor import Prediction, Transform, load
from fastdhm.errors import UserError, few
from fastdhm.system.console import Console
from fastdhm.system.files import replacing
from fastdhm.system.folders import check_writable
from fastdhm.system.paths import printable, shown

SUFFIXES = (".csv", ".json", ".parquet")
Write = Callable[[list[str], list[Prediction]], None]


def predict(
    path: Path,
    images: Sequence[Path],
    out: Path,
    *,
    branch: str | None = None,
    top: int = 5,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
) -> int:
    """Write the ``top`` likeliest classes of every image to ``out``; the number of images that could not be read.

    ``images`` are files, and folders of them. Memory does not grow with their number but for their names. ``out`` is a
    ``.csv``, ``.json`` or ``.parquet`` file, or ``-`` for CSV on standard output.

    Raises:
        ValueError: ``path`` holds no classifier of fastdhm, there is no image, none can be read, or ``out`` does not
            fit.
    """
    _check_out(out)
    if not any(image.exists() for image in images):
        raise UserError(f"nothing lies at {few([shown(image) for image in images])}: name images, or folders of them")
    predictor, console = load(path, branch=branch, device=device), Console(stderr=True)
    top = min(top, len(predictor.classes))
    sizes = batch_size, predictor.config.eval_batch_size, predictor.config.batch_size
    size = next(size for size in sizes if size is not None)
    if min(size, top) < 1:
        raise UserError(f"batch size {size}, top {top}: each must be 1 or more")
    names, done, bad, reason = _Names(images, console), 0, 0, ""
    cut = _Cut(predictor.transform, names)
    with (
        _prepared(cut, size, pick_workers(workers, predictor.device)) as batches,
        _opened(out, top) as write,
        console.counting("predict", len(names)) as advance,
    ):
        for index_B, wrong, image_BHWC in batches:
            for reason in wrong.values():
                if len(names) > 1:
                    console.print(f"left out: {reason}")
            good = [i for i in range(len(index_B)) if i not in wrong]
            done += len(good)  # also those that the output's reader does not want
            if good:
                answers = predictor.answers(torch.from_numpy(image_BHWC[good]), top)
                write([names[index_B[i]] for i in good], answers)
            bad += len(wrong)
            advance(len(index_B))
        if bad == len(names):
            why = f"none of {len(names):,} images can be read" if bad > 1 else reason
            raise UserError(f"{why}; nothing was written")
    console.print(f"{done:,} images predicted: {out}" + (f"; {bad:,} left out" if bad else ""))
    return bad


class _Names(Sequence[str]):
    """The path of every image: files as given, folders with all that is below them."""

    def __init__(self, images: Sequence[Path], console: Console):
        names: list[str] = []
        for image in images:
            if not image.is_dir():
                names.append(str(image))
                continue
            found = PictureSource(image)
            if found.note:
                console.print(found.note)
            names += [os.path.join(image, found.name_of(i)) for i in range(len(found))]
        # of a fixed width: the reference counts of a million strings would make every worker copy them
        self._name_N = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._name_N)

    def __getitem__(self, i: Any) -> Any:
        return os.fsdecode(bytes(self._name_N[i]))


class _Cut:
    """``cut(index_B, room)`` writes these images to ``room`` and gives the reasons of those that cannot be read."""

    def __init__(self, transform: Transform, names: _Names):
        self.transform, self.names = transform, names
        height, width = transform.size_HW
        self.shape_HWC = (height, width, 3)

    def array(self, index_B: np.ndarray, room: Any) -> np.ndarray:
        size = int(np.prod(self.shape_HWC))
        return np.frombuffer(room, np.uint8, len(index_B) * size).reshape(len(index_B), *self.shape_HWC)

    def __call__(self, index_B: np.ndarray, room: Any) -> dict[int, str]:
        image_BHWC, wrong = self.array(index_B, room), {}
        for row, i in enumerate(index_B):
            in_hand(int(i))
            try:
                image_BHWC[row] = self.transform.pixels(Path(self.names[i]))
            except UserError as error:
                wrong[row] = str(error)
        return wrong


@contextmanager
def _prepared(cut: _Cut, size: int, workers: int) -> Iterator[Iterator[tuple]]:
    count = len(cut.names)
    items = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
    room_bytes = min(size, count) * int(np.prod(cut.shape_HWC))
    if workers == 0:
        room = bytearray(room_bytes)
        yield ((item, cut(item, room), cut.array(item, room)) for item in items)
        return
    with WorkerPool(cut, items, workers, label=lambda i: printable(cut.names[i]), room_bytes=room_bytes) as pool:
        answers = zip(items, pool.answers(), strict=True)
        yield ((item, wrong, cut.array(item, room)) for item, (wrong, room) in answers)


def _check_out(out: Path) -> None:
    """Fail now, not after all the work."""
    if str(out) == "-":
        return
    if out.suffix not in SUFFIXES:
        raise UserError(
            f"--out {out}: written as {', '.join(SUFFIXES)}, not {out.suffix!r}, or - for CSV on the output"
        )
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out {out}: " + ("it is a folder" if out.is_dir() else f"{out.parent} is no folder"))
    if out.suffix == ".parquet":
        _pyarrow()
    check_writable(out.parent, "the folder of --out")


def _pyarrow() -> Any:
    try:
        pyarrow = import_module("pyarrow")
        import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(f"--out FILE.parquet needs pyarrow ({error}): pip install 'fastdhm[parquet]'") from error
    return pyarrow


@contextmanager
def _opened(out: Path, top: int) -> Iterator[Write]:
    """A function that appends to ``out``, which is there only when all went well."""
    if str(out) == "-":
        with suppress(BrokenPipeError):  # the reader has what it wanted, such as head
            yield _csv(sys.stdout, top)
            sys.stdout.flush()
        return
    with replacing(out) as temporary:
        if out.suffix == ".parquet":
            with _parquet(temporary, top) as write:
                yield write
            return
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            if out.suffix == ".csv":
                yield _csv(file, top)
                return
            before = "[\n"

            def write(names: list[str], predictions: list[Prediction]) -> None:
                nonlocal before
                for name, found in zip(names, predictions, strict=True):
                    pairs = zip(found.classes, found.probabilities, strict=True)
                    row = {"image": printable(name), "predictions": [{"class": c, "probability": p} for c, p in pairs]}
                    file.write(before + json.dumps(row, ensure_ascii=False))
                    before = ",\n"

            yield write
            file.write("\n]\n")


def _columns(top: int) -> list[str]:
    return ["image", *(f"{what}_{k}" for k in range(1, top + 1) for what in ("class", "probability"))]


def _row(name: str, found: Prediction) -> list[Any]:
    pairs = zip(found.classes, found.probabilities, strict=True)
    return [printable(name), *(cell for pair in pairs for cell in pair)]


def _csv(file: Any, top: int) -> Write:
    writer = csv.writer(file)  # its own line end, \r\n: else a cell that holds the other sign is not quoted
    writer.writerow(_columns(top))
    return lambda names, found: writer.writerows(map(_row, names, found))


@contextmanager
def _parquet(path: Path, top: int) -> Iterator[Write]:
    arrow, columns = _pyarrow(), _columns(top)
    kinds = [arrow.float32() if name.startswith("probability") else arrow.string() for name in columns]
    schema = arrow.schema(list(zip(columns, kinds, strict=True)))
    with arrow.parquet.ParquetWriter(path, schema) as writer:
        yield lambda names, found: writer.write_table(
            arrow.table([list(column) for column in zip(*map(_row, names, found), strict=True)], schema=schema)
        )
