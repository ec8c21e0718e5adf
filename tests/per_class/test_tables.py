"""Tables as CSV: they are read back as they were, whatever the classes are called."""

import csv

import numpy as np
import pytest
from answers import ODD_NAMES, drawn_answers

from fastdhm.per_class import tables
from fastdhm.per_class.measures import Confusion
from fastdhm.per_class.tables import write_tables

K = len(ODD_NAMES)


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture
def written(tmp_path):
    answers = drawn_answers(K, 200, empty=(2,))
    write_tables(tmp_path, answers, ODD_NAMES, lambda index: f"folder/{ODD_NAMES[index % K]}.png")
    return tmp_path, answers


def test_any_class_name_is_read_back(written):
    folder, answers = written
    head, *rows = read(folder / "confusion.csv")
    assert tuple(head[1:]) == ODD_NAMES and tuple(row[0] for row in rows) == ODD_NAMES
    counts_KK = np.array([row[1:] for row in rows], int)
    assert counts_KK.tolist() == [Confusion.of(answers, K).row(k).tolist() for k in range(K)]
    _, *rows = read(folder / "classes.csv")
    assert tuple(row[0] for row in rows) == ODD_NAMES
    assert rows[2][1:] == ["0", rows[2][2], "0", rows[2][4], "", "", "", ""], "a class without images has no recall"
    assert [int(row[1]) for row in rows] == counts_KK.sum(1).tolist()
    assert [int(row[3]) for row in rows] == counts_KK.diagonal().tolist()


def test_pairs_and_mistakes_add_up(written):
    folder, answers = written
    wrong = len(answers.mistakes())
    _, *pairs = read(folder / "confused.csv")
    assert sum(int(row[2]) for row in pairs) == wrong and {row[0] for row in pairs} <= set(ODD_NAMES)
    assert [int(row[2]) for row in pairs] == sorted((int(row[2]) for row in pairs), reverse=True)
    _, *mistakes = read(folder / "mistakes.csv")
    assert len(mistakes) == wrong and all(row[0] == f"folder/{ODD_NAMES[int(row[1]) % K]}.png" for row in mistakes)
    assert [float(row[4]) for row in mistakes] == sorted((float(row[4]) for row in mistakes), reverse=True)
    _, *bins = read(folder / "calibration.csv")
    assert sum(int(row[2]) for row in bins) == 200


def test_a_matrix_that_nothing_opens_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MATRIX_CLASSES", 6)
    assert "confusion.csv" not in write_tables(tmp_path, drawn_answers(K, 20), ODD_NAMES, str)
    assert not (tmp_path / "confusion.csv").exists() and (tmp_path / "confused.csv").exists()
