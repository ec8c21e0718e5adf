"""``fastdhm models``: what networks there are and what they cost."""

from fastdhm.cli.parser import Parser


def run(argv: list[str]) -> int:
    """``fastdhm models``; returns the exit status."""
    parser = Parser(
        "models",
        "Parameters and multiply-adds of networks and their branches, and what a DHM step costs. Nothing is trained or "
        "downloaded.",
    )
    parser.add_argument(
        "names", type=str, nargs="*", help="such as resnet56 or torchvision:convnext_tiny (default: the paper's)"
    )
    parser.add_argument(
        "--image_size", type=int | tuple[int, int] | None, default=None,
        help="pixels: a number for squares, or [HEIGHT,WIDTH] (default: the paper's)",
    )  # fmt: skip
    parser.add_argument("--num_classes", type=int | None, default=None, help="default: of the paper's data set")
    parser.add_argument(
        "--branches", type=tuple[str, ...] | None, default=None, help="such as [B1,B2,B3] (default: [B1,B2])"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    values = parser.parse(argv)
    from fastdhm.commands.models import list_models

    list_models(values.pop("names"), as_json=values.pop("json"), **values)
    return 0
