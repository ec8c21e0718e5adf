"""A comparison's settings, as people edit them."""

import pytest

from fastdhm.compare.arms import split_methods
from fastdhm.compare.directory import read_settings, write_settings
from fastdhm.compare.plan import compare_methods
from fastdhm.errors import UserError


@pytest.fixture
def folder(tmp_path):
    write_settings(tmp_path, compare_methods(split_methods("baseline,dhm"), (0, 1), {"dataset": "synthetic:40"}))
    return tmp_path


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seeds:\n- 0\n", "seeds:\n- -1\n", "seeds is .-1, 1.: must be"),
        ("seeds:\n- 0\n- 1\n", "seeds: []\n", "seeds is ..: must be"),
        ("seeds:\n- 0\n", "seeds:\n- 1\n", "seeds has 1 twice"),
        ("name: dhm\n", "name: baseline\n", "arms has baseline twice"),
        ("name: dhm\n", "name: ../../dhm\n", "name is '../../dhm': must be a valid folder name"),
        ("name: dhm\n", "name: ''\n", "name is '': must be a valid folder name"),
        ("metrics:\n- top1_error\n", "metrics: []\n", "arms and metrics must each have at least one"),
    ],
)
def test_edited_settings_that_make_no_comparison_are_named(folder, before, after, message):
    path = folder / "compare.yaml"
    text = path.read_text("utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), "utf-8")
    with pytest.raises(UserError, match=f"compare.yaml does not hold the settings of a comparison: .*{message}"):
        read_settings(folder)
