"""The tables of a network's answers as CSV: classes, matrix, pairs, calibration, mistakes. Class names stand in them as
they are: quoted where a comma, a quote or a line break asks for it."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastdhm.per_class.measures import Answers, Calibration, Confusion
from fastdhm.system.files import write_csv

MATRIX_CLASSES = 5000  # more make a matrix of hundreds of megabytes that nothing opens


def write_tables(
    folder: Path, answers: Answers, classes: Sequence[str], name_of: Callable[[int], str]
) -> tuple[str, ...]:
    """Write the tables into ``folder``, and return their names; ``name_of`` gives the name of an image by its index.

    ``confusion.csv`` is left out where there are more than MATRIX_CLASSES classes: ``confused.csv`` has the pairs.
    """
    confusion, calibration = Confusion.of(answers, len(classes)), Calibration.of(answers)
    tables: dict[str, tuple[Sequence[str], Iterable[Iterable[Any]]]] = {
        "classes.csv": (CLASSES, _classes(confusion, classes)),
        "confused.csv": (("true", "predicted", "images", "share_percent"), _confused(confusion, classes)),
        "calibration.csv": (("above", "up_to", "images", "confidence_percent", "accuracy_percent"), _bins(calibration)),
        "mistakes.csv": (MISTAKES, _mistakes(answers, classes, name_of)),
    }
    if len(classes) <= MATRIX_CLASSES:
        tables["confusion.csv"] = (("true \\ predicted", *classes), _matrix(confusion, classes))
    for name, (columns, rows) in tables.items():
        write_csv(folder / name, columns, rows)
    return tuple(tables)


CLASSES = (
    "class", "images", "predicted", "correct", "precision_percent", "recall_percent", "f1_percent",
    "most_often_taken_for", "taken_for_it",
)  # fmt: skip
MISTAKES = ("image", "index", "true", "predicted", "confidence_percent", "true_percent")


def _classes(confusion: Confusion, classes: Sequence[str]) -> Iterator[list[Any]]:
    taken_for = confusion.taken_for()
    counts = confusion.support_K, confusion.predicted_K, confusion.correct_K
    shares = confusion.precision_K, confusion.recall_K, confusion.f1_K
    for k, name in enumerate(classes):
        other, images = taken_for.get(k, (-1, 0))
        beside = [classes[other], images] if images else ["", ""]
        yield [name, *(int(count_K[k]) for count_K in counts), *(percent(share_K[k]) for share_K in shares), *beside]


def _matrix(confusion: Confusion, classes: Sequence[str]) -> Iterator[list[Any]]:
    for k, name in enumerate(classes):
        yield [name, *confusion.row(k).tolist()]


def _confused(confusion: Confusion, classes: Sequence[str]) -> Iterator[list[Any]]:
    for p in confusion.confused():
        true, said, count = (int(each[p]) for each in (confusion.true_P, confusion.said_P, confusion.count_P))
        yield [classes[true], classes[said], count, percent(count / confusion.support_K[true])]


def _bins(calibration: Calibration) -> Iterator[list[Any]]:
    for each in calibration.bins:
        yield [f"{each.low:.4f}", f"{each.high:.4f}", each.images, percent(each.confidence), percent(each.accuracy)]


def _mistakes(answers: Answers, classes: Sequence[str], name_of: Callable[[int], str]) -> Iterator[list[Any]]:
    for n in answers.mistakes():
        index, true, said = (int(each[n]) for each in (answers.index_N, answers.target_N, answers.said_N))
        shares = percent(answers.confidence_N[n]), percent(answers.true_N[n])
        yield [name_of(index), index, classes[true], classes[said], *shares]


def percent(share: float) -> str:
    """A share in percent with all digits that count; empty where there is none."""
    return "" if math.isnan(share) else f"{100 * share:.6f}"
