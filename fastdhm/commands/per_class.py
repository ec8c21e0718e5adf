"""``fastdhm eval --per-class``: what is wrong with which classes, as files, and in short on the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from fastdhm.data.sources.source import Source
from fastdhm.errors import UserError
from fastdhm.per_class.measures import Answers, Calibration, Confusion
from fastdhm.per_class.pictures import short, write_pictures
from fastdhm.per_class.result import FOLDER, make_folder, result, write_result
from fastdhm.per_class.tables import MATRIX_CLASSES, write_tables
from fastdhm.system.console import Console
from fastdhm.system.folders import check_writable

PRINTED = 10  # rows of a table


def per_class_folder(path: Path, out: Path | None) -> Path:
    """Where the files for what lies at ``path`` go."""
    return out or (path if path.is_dir() else path.parent) / FOLDER


def make_writable(folder: Path) -> None:
    """Make the folder of the files now: not after all the work.

    Raises:
        ValueError: it cannot be made or written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: name a folder")
    make_folder(folder)
    check_writable(folder, "the folder of --per-class")


def write_per_class(folder: Path, answers: Answers, source: Source, about: str, title: str, step: int | None) -> None:
    """Write the tables and pictures of one branch into ``folder``, and what the report's page shows.

    ``about`` says whose answers they are and of which images, ``title`` stands above the pictures.
    """
    make_folder(folder)
    write_tables(folder, answers, source.classes, source.label)
    write_result(folder, result(answers, source.classes, source.image, about, step))
    write_pictures(folder, answers, source.classes, title, source.image)


def print_per_class(console: Console, branch: str, answers: Answers, classes: Sequence[str]) -> None:
    """Print the hardest classes of one branch, its most frequent mistakes, and how sure it is."""
    confusion, calibration = Confusion.of(answers, len(classes)), Calibration.of(answers)
    hardest_C = confusion.hardest()
    empty = len(classes) - len(hardest_C)
    lowest = "" if len(hardest_C) <= PRINTED else f", the {PRINTED} of {len(hardest_C):,} with the lowest recall"
    console.result(f"classes of {branch}{lowest}", style="italic")
    table = _table("class", "images", "precision %", "recall %", "most often taken for")
    taken_for = confusion.taken_for()
    for k in hardest_C[:PRINTED]:
        other, count = taken_for.get(int(k), (-1, 0))
        beside = f"{short(classes[other])} ({count:,})" if count else "-"
        shares = (_percent(each_K[k]) for each_K in (confusion.precision_K, confusion.recall_K))
        table.add_row(short(classes[k]), f"{confusion.support_K[k]:,}", *shares, beside)
    console.result(table)
    if empty:
        console.result(f"{empty:,} of {len(classes):,} classes have no images here")
    sure = "too sure" if calibration.too_sure > 0 else "not sure enough"
    console.result(
        f"mean recall {_percent(confusion.mean_recall)}%; expected calibration error "
        f"{_percent(calibration.expected_error)}% ({sure}, by {_percent(abs(calibration.too_sure))}% on average)"
    )
    if len(classes) > MATRIX_CLASSES:
        console.result(
            f"confusion.csv is left out for {len(classes):,} classes: confused.csv has every pair that occurs"
        )


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, justify="right" if column == "images" or column.endswith("%") else "left")
    return table


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.2f}"
