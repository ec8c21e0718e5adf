"""The parts of a page on classes: text is text, other branches are folded, and what is damaged is left out."""

import json

import pytest
from answers import ODD_NAMES, drawn_answers, drawn_image

from fastdhm.page.per_class import per_class_sections
from fastdhm.per_class.result import FOLDER, result, write_result


def kept(run_dir, branch="B0", classes=ODD_NAMES, step=4):
    values = result(drawn_answers(len(classes), 60), classes, drawn_image, "of <these> images", step)
    write_result(run_dir / FOLDER / branch, values)
    return values


def test_every_part_is_there_and_names_are_text(tmp_path):
    kept(tmp_path)
    sections = per_class_sections(tmp_path, 4)
    assert list(sections) == ["Classes", "Sample predictions", "The surest mistakes"]
    text = "".join(sections.values())
    assert "<img src=x>" not in text and "&lt;img src=x&gt;" in text and "&lt;these&gt;" in text
    assert "B0 after 4 steps" in text and "before the last" not in text
    assert text.count("<img ") == 24 and text.count("<svg") == 2 and "all others" not in text


def test_of_many_classes_a_part_is_shown_with_the_others_beside_it(tmp_path):
    kept(tmp_path, classes=[f"class {k}" for k in range(40)])
    assert "all others" in per_class_sections(tmp_path, 4)["Classes"]


def test_other_branches_are_folded_and_older_answers_are_told(tmp_path):
    kept(tmp_path)
    kept(tmp_path, "B1", step=None)
    sections = per_class_sections(tmp_path, 9)
    assert "before the last validation" in sections["Classes"] and sections["Classes"].count("<summary>B1<") == 1


@pytest.mark.parametrize("change", [{"bins": None}, {"matrix": {}}, {"samples": [3]}, {"step": "x"}], ids=str)
def test_what_is_damaged_is_left_out(tmp_path, change):
    values = kept(tmp_path)
    (tmp_path / FOLDER / "B0/result.json").write_text(json.dumps(values | change))
    assert per_class_sections(tmp_path, 4) == {}


def test_nothing_is_shown_where_nothing_is_known(tmp_path):
    assert per_class_sections(tmp_path, 4) == {}
