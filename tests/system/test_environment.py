"""Numbers that users set in environment variables, and which libraries there are."""

import pytest

from fastdhm.errors import UserError
from fastdhm.system.environment import installed, positive


def test_a_number_that_is_set_counts(monkeypatch):
    assert positive("FASTDHM_A_NUMBER", 600, "seconds") == 600
    monkeypatch.setenv("FASTDHM_A_NUMBER", "0.5")
    assert positive("FASTDHM_A_NUMBER", 600, "seconds") == 0.5


@pytest.mark.parametrize("given", ["", "many", "0", "-1", "nan"])
def test_what_is_no_number_above_0_is_refused(monkeypatch, given):
    monkeypatch.setenv("FASTDHM_A_NUMBER", given)
    with pytest.raises(UserError, match=f"FASTDHM_A_NUMBER is '{given}'.*seconds"):
        positive("FASTDHM_A_NUMBER", 600, "seconds")


def test_a_folder_of_a_librarys_name_is_not_the_library(tmp_path, monkeypatch):
    (tmp_path / "a_library_of_nobody").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed("yaml") and not installed("a_library_of_nobody") and not installed("another_of_nobody")
