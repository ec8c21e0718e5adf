"""``fastdhm embed``: the features of a folder of images."""

from fastdhm.cli.parser import Parser
from fastdhm.cli.processes import add_processes, in_processes, told_once
from fastdhm.system.paths import expanded


def run(argv: list[str]) -> int:
    """``fastdhm embed``; returns the exit status."""
    parser = Parser(
        "embed",
        "Write a vector of features for each image in a folder, with its file name: the input of the classifier.",
    )
    parser.add_argument("path", type=str, help="Run directory, checkpoint (.pt) or network (.safetensors).")
    parser.add_argument("folder", type=str, help="Folder of images; it may hold folders of more.")
    parser.add_argument(
        "--out", type=str, required=True, metavar="FILE",
        help="File to write: .safetensors, or .npy and a .json of the names.",
    )  # fmt: skip
    parser.switch("--normalize", "Scale each vector to length 1.")
    parser.switch("--flip_average", "Average with the vector of the mirror image.")
    parser.flag("--batch_size", "Images at a time. (default: the run's)", int)
    parser.flag("--workers", "Processes that load images. (default: the run's)", int)
    parser.switch("--skip_bad", "Leave unreadable images out.")
    parser.flag("--device", "Device: cpu, cuda, cuda:1 or auto.", default="auto")
    add_processes(parser)
    with told_once():
        values = parser.parse(argv)
        status = in_processes(["embed", *argv], values.pop("processes"), values["device"])
    if status is not None:
        return status
    from fastdhm.commands.embed import embed as run_embedding

    path, folder, out = (expanded(values.pop(name)) for name in ("path", "folder", "out"))
    run_embedding(path, folder, out, **values)
    return 0
