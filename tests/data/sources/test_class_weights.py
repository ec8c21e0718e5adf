"""The weights of classes: by count, from a file, and what is wrong with a file."""

import re

import numpy as np
import pytest

from fastdhm.data.sources.class_weights import (
    check_class_weights,
    check_every_class,
    read_class_weights,
    weights_by_count,
    weights_by_name,
)
from fastdhm.errors import UserError

CLASSES = ("cat", "dog", "7")


def test_weights_by_count_are_inverse_and_one_in_the_mean():
    weight_K = weights_by_count(np.repeat([0, 1, 2], [60, 30, 10]), 3)
    assert weight_K * [60, 30, 10] == pytest.approx([weight_K[0] * 60] * 3)
    assert weight_K.mean() == pytest.approx(1)


def test_a_file_names_each_class(tmp_path):
    path = tmp_path / "weights.yaml"
    path.write_text("dog: 2\n7: 1e-3\ncat: 0\n")
    assert weights_by_name(read_class_weights(path), CLASSES).tolist() == [0, 2, 0.001]


@pytest.mark.parametrize(("folder", "typed"), [("cafe\u0301", "café"), ("café", "cafe\u0301")])
def test_a_name_may_be_typed_in_another_form_of_unicode(folder, typed):
    assert weights_by_name({"cat": 1.0, typed: 2.0}, (folder, "cat")).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cat: many", "class_weights cat is many: must be a number"),
        ("cat: -1", "the weight of class 'cat' is -1: must be a number from 0 to 1e+30"),
        ("cat: nan", "the weight of class 'cat' is nan: must be"),
        ("cat: 1e39", "the weight of class 'cat' is 1e+39: must be"),
        ("cat: .inf", "the weight of class 'cat' is inf: must be"),
        ("cat: 0\ndog: 0", "all weights of classes are 0"),
        ("cat: 1\ncat: 2", "is not YAML: line 2: cat is given twice"),
        ("- 1\n- 2", "it must hold lines"),
        ("", "is empty"),
    ],
)
def test_a_wrong_file_is_told(tmp_path, text, said):
    path = tmp_path / "weights.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        read_class_weights(path)
    assert str(error.value).count(str(path)) == 1


def test_an_absent_file_is_told(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_class_weights(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"cat": 1.0, "dgo": 1.0}, "class_weights has 'dgo', which is no class of the images; did you mean 'dog'?"),
        ({"cat": 1.0}, "class_weights lacks dog, 7: give every class"),
    ],
)
def test_classes_that_do_not_fit_are_told(weights, said):
    with pytest.raises(UserError, match=re.escape(said)):
        weights_by_name(weights, CLASSES)


def test_a_class_without_images_is_told():
    check_every_class(np.array([0, 1, 2]), CLASSES, "class_weights is auto")
    with pytest.raises(
        UserError, match=r"class_weights is auto, and .* no training image of dog.* --class-weights out"
    ):
        check_every_class(np.array([0, 0, 2]), CLASSES, "class_weights is auto")


def test_weights_given_in_python_are_checked():
    check_class_weights({"a": 0.0, "b": 3.0})
    with pytest.raises(UserError, match=r"'a' is -0\.5"):
        check_class_weights({"a": -0.5})
