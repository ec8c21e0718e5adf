"""Draws docs/run.svg: the terminal after a real `fastdhm train`, printed by its own display and report.

    python tools/run_picture.py [--out FILE] [flags of `fastdhm train`]

The bar is drawn once, in its final state: a picture cannot move. The run takes minutes, and its folder is removed.
"""

import argparse
import io
import os
import re
import tempfile
from pathlib import Path

from rich.text import Text

from fastdhm.cli.train import resolve_training
from fastdhm.engine import train
from fastdhm.engine.device import use_processors
from fastdhm.engine.display import TrainingDisplay
from fastdhm.system.console import Console, paste

COLUMNS = 110
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "run.svg"


class Recorder(Console):
    """A console that keeps its output and wraps it like a terminal of its width."""

    def __init__(self):
        super().__init__(file=io.StringIO(), width=COLUMNS)
        self.record = True

    def print(self, *objects, **how) -> None:
        super().print(*objects, **how | {"soft_wrap": False})


class StillDisplay(TrainingDisplay):
    """The display of a run; its bar is printed once, at the end."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.is_time = lambda: False  # no plain lines instead of the bar

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.console.print(self.progress.get_renderable())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PICTURE, help="default: docs/run.svg")
    own, flags = parser.parse_known_args(argv)
    out, flags = own.out.absolute(), flags or ["--run-dir", "runs/first"]
    console = Recorder()
    console.print(Text.assemble(("$ ", "green"), paste("fastdhm", "train", *flags)))
    config, _ = resolve_training(flags)
    train.TrainingDisplay = StillDisplay  # type: ignore[misc] # what the run makes, under its name
    use_processors()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        train.train(config, console=console)
    svg = console.export_svg(title="fastdhm", unique_id="run")
    # the font would be downloaded; without it the reader's own monospace font is used
    out.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), "utf-8")


if __name__ == "__main__":
    main()
