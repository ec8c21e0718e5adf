"""``fastdhm diagnose``: kernels and gradients of runs beside each other."""

from fastdhm.cli.parser import Parser
from fastdhm.system.paths import expanded


def run(argv: list[str]) -> int:
    """``fastdhm diagnose``; returns the exit status."""
    parser = Parser(
        "diagnose",
        "Compare runs of one network, such as dsl and dhm. How do B0's 3x3 kernels correlate with a side branch's "
        "(Figure 4)? How far do the branches' gradients agree at the forks (Eq. 11; runs with --grad-cosine have "
        "logged it)? It draws pictures, and writes their numbers.",
    )
    parser.add_argument("runs", type=str, nargs="+", metavar="RUN", help="Run directories or checkpoints (.pt).")
    parser.flag("--branch", "Branch whose kernels are compared with B0's.", default="B2")
    parser.flag("--what", "What to compare: all, kernels or gradients.", default="all")
    parser.flag("--out", "Folder that it writes.", default="diagnosis", metavar="FOLDER")
    values = parser.parse(argv)
    from fastdhm.commands.diagnose import diagnose

    paths = [expanded(path) for path in values.pop("runs")]
    diagnose(paths, out=expanded(values.pop("out")), **values)
    return 0
