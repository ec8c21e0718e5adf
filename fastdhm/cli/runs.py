"""``fastdhm runs``: what runs there are and how they do."""

from fastdhm.cli.parser import Parser
from fastdhm.system.paths import expanded

EXAMPLES = """\
Examples:
  # every run below runs/, those of comparisons too
  fastdhm runs

  # for a script: the errors of finished runs
  fastdhm runs experiments --json
"""


def run(argv: list[str]) -> int:
    """``fastdhm runs``; returns the exit status."""
    parser = Parser(
        "runs",
        "List the runs in a folder and below it, newest first: state, epoch, validation error and age. The error is "
        "that of the network which a run keeps, as `fastdhm eval` measures it: of the last epoch or, with --keep best, "
        "of the best.",
        epilog=EXAMPLES,
    )
    parser.add_argument("folder", type=str, nargs="?", default="runs", help="Folder of runs. (default: runs)")
    parser.switch("--json", "Print one JSON list instead of a table.")
    values = parser.parse(argv)
    from fastdhm.commands.runs import list_runs

    list_runs(expanded(values.pop("folder")), as_json=values.pop("json"))
    return 0
