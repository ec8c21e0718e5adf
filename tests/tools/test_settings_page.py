"""The page of settings in the guide is made from the config's docstrings, and says what they say."""

import runpy
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "settings_page.py"


def test_the_page_is_current():
    tool = runpy.run_path(str(TOOL))
    assert tool["PAGE"].read_text("utf-8") == tool["page"](), "run python tools/settings_page.py"
