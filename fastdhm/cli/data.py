"""``fastdhm data build|verify|info``: the files that the fast loader reads."""

from pathlib import Path

from fastdhm.cli.parser import Parser
from fastdhm.config import default_data_dir

VERBS = {
    "build": "Write a data set as .beton files.",
    "verify": "Check .beton files.",
    "info": "Describe .beton files.",
}


def run(argv: list[str]) -> int:
    """``fastdhm data build|verify|info``; returns the exit status."""
    verb, argv = argv[0], argv[1:]
    parser = Parser(f"data {verb}", VERBS[verb])
    parser.add_argument("--dataset", type=str, default="fashion-mnist", help="as in `fastdhm train`")
    parser.add_argument("--data_dir", type=str, default=default_data_dir(), help="folder of the data sets")
    if verb == "build":
        parser.add_argument("--workers", type=int | None, default=None, help="processes (default: one per core)")
        parser.add_argument("--skip_bad", action="store_true", help="leave unreadable images out and record them")
        parser.add_argument("--force", action="store_true", help="build anew what is there")
    values = parser.parse(argv)
    from fastdhm.data import commands

    getattr(commands, verb)(values.pop("dataset"), Path(values.pop("data_dir")).expanduser().absolute(), **values)
    return 0
