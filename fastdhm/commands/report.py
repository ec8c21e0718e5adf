"""``fastdhm report``: the page of a run or of a comparison."""

from pathlib import Path

from fastdhm.engine.saved.names import REPORT
from fastdhm.errors import UserError
from fastdhm.page.comparison import RESULTS, comparison_page
from fastdhm.page.run import run_page
from fastdhm.system.console import Console
from fastdhm.system.files import write_text
from fastdhm.system.paths import shown


def write_report(path: Path, out: Path | None = None) -> Path:
    """Write the page of what lies in the folder ``path`` to ``out``, or into the folder; returns where.

    Raises:
        ValueError: ``path`` is neither a run nor a comparison, or ``out`` cannot be written.
    """
    if not path.is_dir():
        raise UserError(f"{shown(path)} is no folder: name a run directory or the folder of a comparison")
    text = comparison_page(path) if (path / RESULTS).exists() else run_page(path)
    out = path / REPORT if out is None else out
    write_text(out, text)
    Console().print(f"report: {out}")
    return out
