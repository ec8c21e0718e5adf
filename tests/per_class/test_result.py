"""What a page shows of the answers: kept and read back; small for many classes; damaged files are missing ones."""

import base64
import io
import json

import pytest
from answers import ODD_NAMES, drawn_answers, drawn_image
from PIL import Image

from fastdhm.errors import UserError
from fastdhm.per_class.result import FOLDER, encoded, read_results, result, write_result


def test_it_is_read_back(tmp_path):
    values = result(drawn_answers(7, 50, empty=(1,)), ODD_NAMES, drawn_image, "about", 3)
    write_result(tmp_path / FOLDER / "B1", values)
    write_result(tmp_path / FOLDER / "B0", values)
    found = read_results(tmp_path)
    assert list(found) == ["B0", "B1"] and found["B0"]["matrix"]["classes"] == list(ODD_NAMES)
    assert found["B0"]["step"] == 3 and len(found["B0"]["samples"]) == 12
    assert all(each["true"] != each["said"] for each in found["B0"]["mistakes"])


def test_of_many_classes_the_most_telling_are_kept():
    classes = [f"class {k}" for k in range(1000)]
    values = result(drawn_answers(1000, 5000), classes, drawn_image, "about", None)
    assert len(values["matrix"]["classes"]) <= 16 and len(values["hardest"]) == 100
    assert len(json.dumps(values)) < 60_000


@pytest.mark.parametrize("text", ["", "[]", '{"a": ', "\xff"], ids=str)
def test_a_damaged_file_is_a_missing_one(tmp_path, text):
    (tmp_path / FOLDER / "B0").mkdir(parents=True)
    (tmp_path / FOLDER / "B0/result.json").write_text(text, "latin-1")
    assert read_results(tmp_path) == {}


def test_an_image_that_is_gone_leaves_its_answer():
    def gone(_index):
        raise UserError("it is gone")

    values = result(drawn_answers(3, 5), "abc", gone, "about", None)
    assert [each["image"] for each in values["samples"]] == [""] * 5


@pytest.mark.parametrize(
    ("size", "kind", "shown"),
    [((28, 28), "png", (28, 28)), ((640, 320), "jpeg", (144, 72)), ((1, 900), "jpeg", (1, 144))],
)
def test_images_are_small(size, kind, shown):
    head, _, data = encoded(Image.new("L", size)).partition(",")
    assert head == f"data:image/{kind};base64" and Image.open(io.BytesIO(base64.b64decode(data))).size == shown
