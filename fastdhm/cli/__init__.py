"""The command line: finds a command's file, calls it, and says in a sentence why it ended.

A command is a line in :data:`GROUPS` and a file here of its first word's name (dashes are underscores), which has
``run(argv) -> exit status``: it parses into a config and calls one function. Only the file of the command given is
imported, and it imports what computes after parsing, so that a mistake is told at once.

Train and use: train, eval, predict, average, export, embed. Compare and understand: compare, diagnose, runs, report,
models. Data and files: data, import_official. This machine: doctor, bench. For all of them: parser (flags, help texts,
messages) and processes (several that compute together).
"""

import os
import signal
import sys
import traceback
from importlib import import_module

from fastdhm import __version__
from fastdhm.data.images.read import silence_pillow
from fastdhm.errors import UserError, unknown
from fastdhm.system.paths import check_current, place_caches
from fastdhm.system.signals import end_at_once
from fastdhm.system.streams import answer, ready_streams, settle_streams, tell

GROUPS = {
    "Train and use a network": {
        "train": "train a network; without flags, DHM on Fashion-MNIST",
        "eval": "measure the error of a run or a network; on people, mAP and ranks",
        "export": "write a network as ONNX or for torch.export, checked on images",
        "predict": "write classes and probabilities of images to a file",
        "average": "write the mean of several networks' weights, with their errors",
        "embed": "write a vector of features for each image in a folder",
    },
    "Compare and understand": {
        "compare": "train several methods with several seeds, or a table of the paper",
        "diagnose": "compare runs: what mimicking does to kernels and gradients",
        "runs": "list runs, newest first: state, epoch, error and age",
        "report": "write one HTML page of a run or a comparison",
        "models": "list networks: parameters, multiply-adds, what a step costs",
    },
    "Data and files": {
        "data build": "write a data set as .beton files, and check every image",
        "data verify": "check .beton files against their manifests",
        "data info": "print what .beton files hold",
        "data show": "draw training images as a run's network sees them",
        "import-official": "make a run directory of a checkpoint of the authors' code",
    },
    "This machine": {
        "doctor": "check this machine, what is installed and every op",
        "bench loss": "time the mimicking loss against its peers",
        "bench linear": "time heads and loss as one op, for many classes",
        "bench mask": "time the branch mask against its peers",
        "bench conv": "time convolutions against torch's",
        "bench norm": "time batch norm with what follows it against its peers",
        "bench reid": "time the ranking of a gallery of people against its peers",
        "bench step": "time a training step against the eager reference",
        "bench epoch": "time whole epochs, data included, against the eager reference",
        "bench accuracy": "time training to a test error against the eager reference",
        "bench loader": "time every loader against a torchvision DataLoader",
        "bench scale": "time a run of several processes, and how gradients are shared",
        "bench startup": "time a run from the command to its first step and to full speed",
    },
}
COMMANDS = {name: does for commands in GROUPS.values() for name, does in commands.items()}


def usage(group: str = "") -> str:
    """The commands and what each does; those of one ``group`` alone, such as ``data``."""
    width = max(map(len, COMMANDS))
    lines = [f"fastdhm {__version__}: train convolutional networks with Dynamic Hierarchical Mimicking"]
    for title, commands in GROUPS.items():
        shown = {name: does for name, does in commands.items() if group in ("", name.split()[0])}
        if shown:
            lines += ["", f"{title}:", *(f"  fastdhm {name:{width}}  {does}" for name, does in shown.items())]
    return "\n".join([*lines, "", "`fastdhm COMMAND --help` lists the flags of a command."])


def _asks_for_help(argv: list[str]) -> bool:
    return not argv or argv[0] in ("-h", "--help")


def _dispatch(name: str, argv: list[str]) -> int:
    """Run the command ``name ARGV``; in a group, such as ``data``, the first of ``argv`` is checked too."""
    firsts = list(dict.fromkeys(command.split()[0] for command in COMMANDS))
    if name not in firsts:
        raise unknown("command", name, firsts)
    verbs = [command.split()[1] for command in COMMANDS if command.startswith(f"{name} ")]
    if verbs and _asks_for_help(argv):
        answer(usage(name))
        return 0
    if verbs and argv[0] not in verbs:
        raise unknown(f"{name} command", argv[0], verbs)
    return import_module(f"fastdhm.cli.{name.replace('-', '_')}").run(argv)


def _command(argv: list[str]) -> int:
    if _asks_for_help(argv):
        answer(usage())
        return 0
    if argv[0] == "--version":
        answer(__version__)
        return 0
    return _dispatch(argv[0], argv[1:])


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0: done. 1: a benchmark's check failed, a run of a comparison, or an image that was to be predicted. 2: something
    that the user or the machine can mend, said in a sentence. 70: an error of ours, with the file to report. 75:
    another process of the run is lost. 128 + N: stopped by signal N.
    """
    argv = sys.argv[1:] if argv is None else argv
    ready_streams()
    silence_pillow()
    place_caches()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch prints a trace where its host is gone
    with end_at_once():
        try:
            check_current()
            return _command(argv)
        except (Exception, KeyboardInterrupt) as error:
            return _ended(error, argv)
        finally:
            settle_streams()


def _ended(error: BaseException, argv: list[str]) -> int:
    """Say why a command ended, unless another process of its run did; its exit status."""
    from fastdhm.system.endings import cause, exit_status, report_crash
    from fastdhm.system.place import speaks

    if hasattr(error, "said"):
        return error.said
    status, by = exit_status(error), getattr(error, "by", "")
    if status > 128 and not isinstance(error, UserError):
        if speaks():
            tell(f"fastdhm: stopped by {signal.Signals(status - 128).name}")
        return status
    why = cause(error, argv[0] if argv else "")
    if why is not None:
        tell(f"fastdhm: error: {by}{why}")
    else:
        tell(f"fastdhm: internal error: {by}{' '.join(traceback.format_exception_only(error)[-1].split())}")
    if status != 70:
        return status
    from fastdhm.commands.doctor import machine, software

    facts = (f"{fact.name}: {fact.text}" for ask in (software.software, machine.hardware) for fact in ask())
    path = report_crash(error, argv, facts)
    if path:
        tell(f"fastdhm: please report it, with {path}")
    else:
        tell("fastdhm: please report it; no file could be written, so here is what it would hold\n")
        tell("".join(traceback.format_exception(error)))
    return 70
