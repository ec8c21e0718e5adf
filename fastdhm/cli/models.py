"""``fastdhm models``: what networks there are and what they cost."""

from fastdhm.cli.parser import Parser


def run(argv: list[str]) -> int:
    """``fastdhm models``; returns the exit status."""
    parser = Parser(
        "models",
        "Print the parameters and multiply-adds of networks and their branches, and what a DHM step costs. Nothing is "
        "trained or downloaded.",
    )
    parser.add_argument(
        "names", type=str, nargs="*", help="Networks, such as resnet56 or timm:NAME. (default: the paper's)"
    )
    parser.flag(
        "--image_size", "Pixels that it sees: a side, or [HEIGHT,WIDTH]. (default: the paper's)", int | tuple[int, int]
    )
    parser.flag("--num_classes", "Classes. (default: those of the paper's data set)", int)
    parser.flag("--branches", "Side branches. (default: B1,B2)", tuple[str, ...])
    parser.switch("--json", "Print one JSON object instead of tables.")
    values = parser.parse(argv)
    from fastdhm.commands.models import list_models

    list_models(values.pop("names"), as_json=values.pop("json"), **values)
    return 0
