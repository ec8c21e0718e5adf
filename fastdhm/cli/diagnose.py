"""``fastdhm diagnose``: kernels and gradients of runs beside each other."""

from fastdhm.cli.parser import Parser
from fastdhm.system.paths import expanded


def run(argv: list[str]) -> int:
    """``fastdhm diagnose``; returns the exit status."""
    parser = Parser(
        "diagnose",
        "Compare runs of one architecture, such as dsl and dhm: how B0's 3x3 kernels correlate with a side branch's "
        "(Figure 4), and the cosines between the branches' loss gradients at the forks (Eq. 11), which runs with "
        "--grad-cosine have logged. Pictures and their numbers.",
    )
    parser.add_argument("runs", type=str, nargs="+", metavar="RUN", help="run directories or checkpoints (.pt)")
    parser.add_argument("--branch", type=str, default="B2", help="whose kernels are compared with B0's")
    parser.add_argument("--what", type=str, default="all", help="all, kernels or gradients")
    parser.add_argument("--out", type=str, default="diagnosis", metavar="FOLDER", help="where the files go")
    values = parser.parse(argv)
    from fastdhm.commands.diagnose import diagnose

    paths = [expanded(path) for path in values.pop("runs")]
    diagnose(paths, out=expanded(values.pop("out")), **values)
    return 0
