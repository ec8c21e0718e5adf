"""``fastdhm predict``: the classes of images."""

from pathlib import Path

from fastdhm.cli.parser import Parser
from fastdhm.system.paths import expanded

ABOUT = """Write the likeliest classes of images, with their probabilities, to a file.

  fastdhm predict runs/first photos/new --out predictions.csv
  fastdhm predict runs/first a.jpg b.png --branch ensemble --out - | head"""


def run(argv: list[str]) -> int:
    """``fastdhm predict``; returns the exit status: 1 if an image could not be read, the others are written."""
    parser = Parser("predict", ABOUT)
    parser.add_argument("path", type=str, help="Run directory, checkpoint (.pt) or network (.safetensors).")
    parser.add_argument("images", type=str, nargs="+", help="Files, and folders of images and of folders of more.")
    parser.add_argument(
        "--out", type=str, required=True, metavar="FILE", help="File to write: .csv, .json, .parquet; - for the output."
    )
    parser.flag("--branch", "Network of a run or a checkpoint: B0, another branch or ensemble. (default: the run's)")
    parser.flag("--top", "Classes for each image.", int, 5)
    parser.flag("--batch_size", "Images at a time. (default: the run's)", int)
    parser.flag("--workers", "Processes that load images. (default: the run's)", int)
    parser.flag("--device", "Device: cpu, cuda, cuda:1 or auto.", default="auto")
    values = parser.parse(argv)
    from fastdhm.commands.predict import predict

    path, images, out = values.pop("path"), values.pop("images"), values.pop("out")
    out = Path("-") if out == "-" else expanded(out)
    return 1 if predict(expanded(path), [expanded(image) for image in images], out, **values) else 0
