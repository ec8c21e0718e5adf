"""``fastdhm average``: the mean of several trained networks."""

from fastdhm.cli.parser import Parser
from fastdhm.system.paths import expanded

EXAMPLES = """\
Examples:
  # two checkpoints of one run
  fastdhm average runs/first/best.pt runs/first/last.pt

  # fine-tuned from the same weights, with other settings
  fastdhm average runs/a runs/b runs/c --out soup.safetensors
"""


def run(argv: list[str]) -> int:
    """``fastdhm average``; returns the exit status."""
    parser = Parser(
        "average",
        "Write the mean of several networks' weights as a network. The statistics of batch norm are computed anew on "
        "training images, and the errors of all are printed. It helps where the networks have learnt from one start.",
        usage="fastdhm average RUN RUN ... [--FLAG VALUE ...]",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "paths", type=str, nargs="+", metavar="RUN", help="Run directory, checkpoint (.pt) or network (.safetensors)."
    )
    parser.flag("--out", "New file to write.", default="average.safetensors", metavar="FILE")
    parser.flag("--images", "Training images for the statistics of batch norm.", int, default=10_000, metavar="N")
    parser.flag("--dataset", "Images of the same classes, such as folder:PATH. (default: the first run's)")
    parser.flag("--data_dir", "Folder of the data sets. (default: the first run's)")
    parser.flag("--device", "Device: cpu, cuda, cuda:1 or auto.", default="auto")
    values = parser.parse(argv)
    from fastdhm.commands.average import average
    from fastdhm.engine.device import use_processors

    use_processors()
    average([expanded(path) for path in values.pop("paths")], out=expanded(values.pop("out")), **values)
    return 0
