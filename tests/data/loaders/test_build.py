"""Which loader is taken, and why not another."""

import pytest

from fastdhm.data.loaders.build import pick_kind
from fastdhm.errors import UserError


def test_absent_ffcv_is_said(monkeypatch):
    monkeypatch.setattr("fastdhm.data.loaders.build.why_not", lambda: "FFCV cannot be imported (no such module)")
    assert pick_kind("auto") == ("torch", "FFCV cannot be imported (no such module)")
    assert pick_kind("torch")[0] == "torch"
    with pytest.raises(UserError, match=r"apt-get install libopencv-dev .*fastdhm\[ffcv\]"):
        pick_kind("ffcv")
    with pytest.raises(UserError, match="known: auto, resident, ffcv, torch"):
        pick_kind("dali")
