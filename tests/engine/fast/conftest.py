"""For tests of the fused forward."""

import pytest

from fastdhm.ops import conv2d as plain_convolutions
from fastdhm.ops import conv3x3 as convolutions


@pytest.fixture
def convolutions_pay(monkeypatch):
    """In float64 too, where rounding hides nothing."""
    monkeypatch.setattr(convolutions, "pays", lambda *_: True)
    monkeypatch.setattr(plain_convolutions, "pays", lambda *_: True)
