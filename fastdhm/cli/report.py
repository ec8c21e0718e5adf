"""``fastdhm report``: what happened in a run, as a page for the browser."""

from fastdhm.cli.parser import Parser
from fastdhm.system.paths import expanded

EXAMPLES = """\
Examples:
  # writes runs/first/report.html
  fastdhm report runs/first

  # a comparison, somewhere else
  fastdhm report runs/compare-icons-resnet20 --out icons.html
"""


def run(argv: list[str]) -> int:
    """``fastdhm report``; returns the exit status."""
    parser = Parser(
        "report",
        "Write one HTML page of a run or a comparison: curves, branches, terms, speed and settings. It needs no "
        "network and no other file. A run may still train: `fastdhm train --report true` writes it after every epoch.",
        epilog=EXAMPLES,
    )
    parser.add_argument("path", type=str, help="Run directory, or folder of a comparison.")
    parser.flag("--out", "File to write. (default: report.html in the folder)", metavar="FILE")
    values = parser.parse(argv)
    from fastdhm.commands.report import write_report

    path, out = expanded(values.pop("path")), values.pop("out")
    write_report(path, expanded(out) if out else None)
    return 0
