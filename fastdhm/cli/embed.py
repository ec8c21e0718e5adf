"""``fastdhm embed``: the features of a folder of images."""

from fastdhm.cli.parser import Parser
from fastdhm.system.paths import expanded


def run(argv: list[str]) -> int:
    """``fastdhm embed``; returns the exit status."""
    parser = Parser(
        "embed", "Write what a run's network makes of each image in a folder before its classifier, with file names."
    )
    parser.add_argument("path", type=str, help="a run directory, a checkpoint (.pt) or a network (.safetensors)")
    parser.add_argument("folder", type=str, help="folder of images; those in folders below are taken too")
    parser.add_argument(
        "--out", type=str, required=True, metavar="FILE",
        help=".safetensors (names in its metadata) or .npy (names in a .json beside it)",
    )  # fmt: skip
    parser.add_argument("--normalize", action="store_true", help="scale each embedding to length 1")
    parser.add_argument("--flip_average", action="store_true", help="average with the mirror image's")
    parser.add_argument("--batch_size", type=int | None, default=None, help="images at a time (default: the run's)")
    parser.add_argument("--workers", type=int | None, default=None, help="loader processes")
    parser.add_argument("--skip_bad", action="store_true", help="leave unreadable images out")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:N")
    values = parser.parse(argv)
    from fastdhm.commands.embed import embed as run_embedding
    from fastdhm.engine.device import use_processors

    use_processors()
    path, folder, out = (expanded(values.pop(name)) for name in ("path", "folder", "out"))
    run_embedding(path, folder, out, **values)
    return 0
