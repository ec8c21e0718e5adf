"""Write docs/settings.md: every value of a run, from the docstrings of fastdhm.config.

python tools/settings_page.py
"""

import dataclasses
import textwrap
from pathlib import Path

from fastdhm.cli.parser import Parser, default_of
from fastdhm.config import TOPICS

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """\
# Settings

Every value of a run. Give it as a flag, `--batch-size 64`, or in the YAML file of `--config`, `batch_size: 64`. A flag
beats the file, and the file beats the recipe of the data set and network; what none of them gives has the default
below. `fastdhm train --print-config` prints the values that a run would have.
"""


def page() -> str:
    """The text of the page."""
    parser = Parser("train", "")
    parser.add_run_arguments()
    flags = {action.dest: action for action in parser._actions}
    lines = [HEAD]
    for topic in TOPICS:
        lines += [f"## {(topic.__doc__ or '').rstrip('.')}", ""]
        for field in dataclasses.fields(topic):
            action = flags[field.name]
            told = " ".join((action.help or "").split()).replace("Null: ", "Default (null): ")
            default = "" if field.default is None else f" Default: {default_of(action)}."
            text = f"- `--{field.name.replace('_', '-')}`: {told}{default}"
            lines += textwrap.wrap(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
