"""``fastdhm data build|verify|info``: the files that the fast loader reads."""

from fastdhm.cli.parser import Parser
from fastdhm.system.paths import default_data_dir, expanded

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
    parser.add_argument(
        "--data_dir", type=str | None, default=None, help="folder of the data sets (default: ~/.cache/fastdhm)"
    )
    parser.add_argument("--store", type=str | None, default=None, help="raw, jpg or smart, as in `fastdhm train`")
    parser.add_argument("--store_size", type=int | None, default=None, help="longer side in pixels, as in train")
    parser.add_argument("--store_quality", type=int | None, default=None, help="JPEG quality, as in train")
    parser.add_argument("--grey_range", type=tuple[float, float] | None, default=None, help="as in train")
    if verb == "build":
        parser.add_argument("--workers", type=int | None, default=None, help="processes (default: one per processor)")
        parser.add_argument("--skip_bad", action="store_true", help="leave unreadable images out and record them")
        parser.add_argument("--force", action="store_true", help="build anew what is there")
    values = parser.parse(argv)
    from fastdhm.commands import data as commands
    from fastdhm.data.beton.settings import ImageSettings

    dataset, data_dir = values.pop("dataset"), expanded(values.pop("data_dir") or default_data_dir()).absolute()
    wishes = {name: values.pop(f"store_{name}") for name in ("size", "quality")}
    wishes |= {name: values.pop(name) for name in ("store", "grey_range")}
    settings = ImageSettings.for_dataset(dataset, **wishes)
    getattr(commands, verb)(dataset, data_dir, settings, **values)
    return 0
