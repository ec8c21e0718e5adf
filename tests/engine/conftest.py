"""For whole runs."""

import pytest
from figures import undrawn

from fastdhm.engine import report


@pytest.fixture(autouse=True)
def curves_are_not_drawn(monkeypatch):
    """Those of runs that fixtures of a module share are."""
    monkeypatch.setattr(report, "save_figure", undrawn)
