"""Pictures: there for any number of classes, of a size to look at, and not for what is not there."""

import numpy as np
import pytest
from answers import ODD_NAMES, drawn_answers, drawn_image
from PIL import Image

from fastdhm.per_class.measures import Answers, Confusion
from fastdhm.per_class.pictures import CELLS, _pooled, short, write_pictures


def perfect(num_classes):
    class_N, sure_N = np.arange(num_classes), np.full(num_classes, 0.5)
    return Answers(class_N, class_N, class_N.copy(), sure_N, sure_N)


def test_any_names_and_an_empty_class_are_drawn(tmp_path):
    names = write_pictures(tmp_path, drawn_answers(7, 60, empty=(2,)), ODD_NAMES, "$title", drawn_image)
    assert names == ("confusion.png", "calibration.png", "mistakes.png")
    assert all(300 < side < 2000 for name in names for side in Image.open(tmp_path / name).size)


@pytest.mark.slow
@pytest.mark.parametrize("answers", [perfect(1000), drawn_answers(1000, 3000)], ids=["perfect", "wrong"])
def test_a_thousand_classes_stay_readable(tmp_path, answers):
    classes = [f"a class with a long name, number {k}" for k in range(1000)]
    (tmp_path / "mistakes.png").touch()  # of an earlier network
    write_pictures(tmp_path, answers, classes, "a thousand", drawn_image)
    assert all(400 < side < 2400 for side in Image.open(tmp_path / "confusion.png").size)
    assert (tmp_path / "mistakes.png").exists() == (len(answers.mistakes()) > 0)


def test_a_single_mistake_is_seen_among_a_thousand_classes():
    answers = perfect(1000)
    answers.said_N[999] = 0
    pooled_DD = _pooled(Confusion.of(answers, 1000))
    assert pooled_DD.shape == (CELLS, CELLS) and np.argwhere(pooled_DD).tolist() == [[CELLS - 1, 0]]


def test_long_names_are_cut_on_one_line():
    assert short("a\nb") == "a\\nb" and len(short("x" * 300)) == 24
