"""For whole benchmarks."""

import pytest
from figures import undrawn

from fastdhm.benchmarks.harness import report


@pytest.fixture(autouse=True)
def plots_are_not_drawn(request, monkeypatch):
    """harness/test_report draws them."""
    if request.path.parent.name == "benchmarks":
        monkeypatch.setattr(report, "save_figure", undrawn)
