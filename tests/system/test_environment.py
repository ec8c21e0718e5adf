"""Numbers that users set in environment variables."""

import pytest

from fastdhm.errors import UserError
from fastdhm.system.environment import positive


def test_a_number_that_is_set_counts(monkeypatch):
    assert positive("FASTDHM_A_NUMBER", 600, "seconds") == 600
    monkeypatch.setenv("FASTDHM_A_NUMBER", "0.5")
    assert positive("FASTDHM_A_NUMBER", 600, "seconds") == 0.5


@pytest.mark.parametrize("given", ["", "many", "0", "-1", "nan"])
def test_what_is_no_number_above_0_is_refused(monkeypatch, given):
    monkeypatch.setenv("FASTDHM_A_NUMBER", given)
    with pytest.raises(UserError, match=f"FASTDHM_A_NUMBER is '{given}'.*seconds"):
        positive("FASTDHM_A_NUMBER", 600, "seconds")
