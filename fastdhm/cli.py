"""The command line: parses into a config, calls one function, prints a user's mistake without a traceback."""

import argparse
import dataclasses
import importlib
import re
import sys
from difflib import get_close_matches
from pathlib import Path

import jsonargparse

from fastdhm import __version__
from fastdhm.config import TrainConfig, default_data_dir
from fastdhm.errors import UserError, unknown
from fastdhm.recipes import recipe

USAGE = f"""fastdhm {__version__}: train convolutional networks with Dynamic Hierarchical Mimicking

  fastdhm train         train a network; alone, DHM on Fashion-MNIST
  fastdhm eval          test error of a run, a checkpoint or a stripped network; mAP and ranks on people
  fastdhm embed         what a run's network makes of each image in a folder, for a search index
  fastdhm data build    write a data set as .beton files, every image checked
  fastdhm data verify   check .beton files against their manifests
  fastdhm data info     say what .beton files hold
  fastdhm bench loss    time the mimicking loss against its peers, checked first
  fastdhm bench mask    the same for the branch mask
  fastdhm bench reid    the same for the ranking of a gallery

`fastdhm COMMAND --help` lists a command's flags; `fastdhm train --print_config` shows a run without starting it."""

# how the parser names types -> how a person does
PLAIN_TYPES = {
    "<class 'float'>": "a number",
    "<class 'int'>": "a whole number",
    "<class 'NoneType'>": "null",
    "<class 'str'>": "text",
    "tuple[int, int]": "[HEIGHT,WIDTH]",  # the image size alone is such a pair
    "tuple[str, ...]": "[NAME,...]",
    "dict[str, float]": "{NAME: NUMBER}",
    "typing.Literal": "one of ",
}

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(jsonargparse.ArgumentParser):
    """Flags spelt with dashes (``--batch-size``), underscores accepted; a mistake is one clear line."""

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"fastdhm {command}", description=description, formatter_class=argparse.HelpFormatter)

    def error(self, message: str, ex: Exception | None = None) -> None:
        raise UserError(f"{self._plain(' '.join(str(message).split()))}; `{self.prog} --help` lists the flags")

    def _plain(self, message: str) -> str:
        """The parser's message in the user's terms: flags and values, not Python types."""
        wrong = re.search(r'Parser key "(\w+)":.*?Expected a (.+?)\. Got value: (.+?)( -|$)', message)
        union = re.search(
            r'key "(\w+)": Does not validate .*?Subtypes: \[(.+)\] Errors: .* Given value: (.+)$', message
        )
        if wrong or union:
            key, expected, value = (union or wrong).groups()[:3]
            for python, plain in PLAIN_TYPES.items():
                expected = expected.replace(python, plain)
            return f"{key} is {value}: must be {expected.replace(', ', ' or ') if union else expected}"
        flag = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        near = flag and get_close_matches(flag[1].replace("_", "-"), self._option_string_actions, n=1)
        return f"{message}; did you mean {near[0]}?" if near else message

    def spell_with_dashes(self) -> None:
        """Show ``--batch-size`` for ``--batch_size`` in the help, and accept both."""
        for action in self._actions:
            if action.option_strings and "_" in action.option_strings[0]:
                dashed = action.option_strings[0].replace("_", "-")
                action.option_strings[:] = [dashed]
                self._option_string_actions[dashed] = action

    def parse(self, argv: list[str], defaults: bool = True) -> dict:
        """The values given in ``argv``, with ``defaults`` those of the flags not given as well."""
        try:
            values = self.parse_args(argv, defaults=defaults).as_dict()
        except UnicodeDecodeError as error:
            raise UserError(f"--config is not a text file: {error}") from error
        return {name: value for name, value in values.items() if name not in ("config", "print_config")}


def train_parser() -> Parser:
    """The parser of ``fastdhm train``: a flag for every value of :class:`TrainConfig`."""
    parser = Parser(
        "train",
        "Train a network. Flags override --config, which overrides the recipe of the data set; --print_config shows "
        "the values that come out.",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the values below")
    parser.add_argument("--resume", metavar="RUN", default=None, help="go on with the run in this folder, bit for bit")
    parser.add_class_arguments(TrainConfig)
    parser.spell_with_dashes()
    return parser


def resolve_training(argv: list[str]) -> tuple[TrainConfig, bool]:
    """The config of ``fastdhm train ARGV`` (recipe, then --config, then flags), and whether it resumes a run."""
    parser = train_parser()
    flags = [a for a in argv if not a.startswith(("--print_config", "--print-config"))]
    given = parser.parse(flags, defaults=False)
    resume = given.pop("resume", None)
    if resume is None:
        base = TrainConfig()
        base = recipe(given.get("dataset", base.dataset), given.get("arch"), given.get("method", base.method))
    else:
        base = _resumed(Path(resume), given)
    parser.set_defaults(base)
    values = parser.parse(flags)
    values.pop("resume", None)
    try:
        config = TrainConfig(**values)
    except ValueError as error:
        raise UserError(str(error)) from error
    if flags != argv:
        parser.parse(argv)  # prints the config and exits
    return config, resume is not None


def _resumed(run_dir: Path, given: dict) -> dict:
    """The values of a run to go on with; ``ValueError`` if ``given`` would change what it learns."""
    from fastdhm.engine.checkpoint import RESUMABLE, differing, read_config

    config = dataclasses.replace(read_config(run_dir), run_dir=str(run_dir), max_steps=None)
    try:
        changed = differing(config, dataclasses.replace(config, **given))
    except ValueError as error:
        raise UserError(str(error)) from error
    if changed:
        raise UserError(
            f"--resume goes on with the config in {run_dir}; this would change it ({', '.join(changed)}). "
            f"Only {', '.join(RESUMABLE)} can be set anew; for anything else start a new run"
        )
    return dataclasses.asdict(config)


def train(argv: list[str]) -> int:
    """``fastdhm train``; returns the exit status."""
    config, resume = resolve_training(argv)
    from fastdhm.engine.train import train as run_training

    outcome = run_training(config, resume=resume)
    return 128 + outcome.signal if outcome.signal else 0


def evaluate(argv: list[str]) -> int:
    """``fastdhm eval``; returns the exit status."""
    parser = Parser(
        "eval",
        "Top-1 and top-5 test error of each branch, and of the stripped network. After training on a re-identification "
        "set: mAP and CMC of the stripped network's features, single query, with ranking.png and cmc.png beside RUN.",
    )
    parser.add_argument("path", type=str, help="a run directory, a checkpoint (.pt) or a network (.safetensors)")
    parser.add_argument("--data_dir", type=str | None, default=None, help="data folder (default: the run's)")
    parser.add_argument("--loader", type=str | None, default=None, help="ffcv or torch (default: the run's)")
    parser.add_argument("--workers", type=int | None, default=None, help="loader threads or processes")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--reid", action="store_true", help="refuse a run on anything but a re-identification set")
    parser.add_argument("--metric", type=str, default="euclidean", help="distance of features: euclidean or cosine")
    parser.add_argument("--flip_average", action="store_true", help="average features with the mirror image's")
    parser.add_argument("--rerank", action="store_true", help="re-rank by k-reciprocal neighbours")
    parser.add_argument("--per_query", metavar="FILE", type=str | None, default=None, help="CSV of every query's AP")
    parser.spell_with_dashes()
    values = parser.parse(argv)
    given = {name: values.pop(name) for name in ("metric", "flip_average", "rerank")}
    ranking = {name: value for name, value in given.items() if value not in ("euclidean", False)}
    per_query = values.pop("per_query")
    from fastdhm.engine.evaluate_command import evaluate_path

    path, per_query = Path(values.pop("path")), per_query and Path(per_query).expanduser()
    evaluate_path(path, as_json=values.pop("json"), per_query=per_query, **ranking, **values)
    return 0


def embed(argv: list[str]) -> int:
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
    parser.spell_with_dashes()
    values = parser.parse(argv)
    from fastdhm.engine.embed import embed as run_embedding

    path, folder, out = (Path(values.pop(name)).expanduser() for name in ("path", "folder", "out"))
    run_embedding(path, folder, out, **values)
    return 0


def data(argv: list[str]) -> int:
    """``fastdhm data build|verify|info``; returns the exit status."""
    verbs = {
        "build": "Write a data set as .beton files.",
        "verify": "Check .beton files.",
        "info": "Describe .beton files.",
    }
    if not argv or argv[0] not in verbs:
        if not argv or argv[0] in ("-h", "--help"):
            print(USAGE)
            return 0
        raise unknown("data command", argv[0], verbs)
    verb, argv = argv[0], argv[1:]
    parser = Parser(f"data {verb}", verbs[verb])
    parser.add_argument("--dataset", type=str, default="fashion-mnist", help="as in `fastdhm train`")
    parser.add_argument("--data_dir", type=str, default=default_data_dir(), help="folder of the data sets")
    if verb == "build":
        parser.add_argument("--workers", type=int | None, default=None, help="processes (default: one per core)")
        parser.add_argument("--skip_bad", action="store_true", help="leave unreadable images out and record them")
        parser.add_argument("--force", action="store_true", help="build anew what is there")
    parser.spell_with_dashes()
    values = parser.parse(argv)
    from fastdhm.data import commands

    getattr(commands, verb)(values.pop("dataset"), Path(values.pop("data_dir")).expanduser().absolute(), **values)
    return 0


def bench(argv: list[str]) -> int:
    """``fastdhm bench loss|mask|reid``; returns the exit status, 1 if a peer gave a wrong result."""
    benches = {
        "loss": "Time the mimicking loss, forward and backward, against its peers; each is checked first.",
        "mask": "Time the branch mask against its peers; each is checked first.",
        "reid": "Time the ranking of a gallery of Market-1501's size, on the CPU, against its peers; each is checked.",
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv[0] not in benches:
        raise unknown("benchmark", argv[0], benches)
    name, argv = argv[0], argv[1:]
    parser = Parser(f"bench {name}", benches[name])
    if name == "loss":
        parser.add_argument(
            "--shape", action="append", help="branches x batch x classes, as 3x256x1000; repeatable (default: a grid)"
        )
        parser.add_argument("--dtype", type=str, default="float32", help="float32, bfloat16, float16 or float64")
        parser.add_argument(
            "--compiled", type=str, default="auto", help="time torch.compile of the loops: on, off, auto (two shapes)"
        )
        parser.add_argument("--sweep", action="store_true", help="also over branches and classes, with plots")
    if name != "reid":
        parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--threads", type=int | None, default=None, help="threads of torch (default: torch's own)")
    parser.add_argument("--rounds", type=int, default=5 if name == "reid" else 50, help="samples of each peer")
    parser.add_argument("--quick", action="store_true", help="a smoke run: small, few rounds, no compiling")
    parser.add_argument("--out", type=str, default="bench", help="folder for JSON, CSV and plots")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    values = parser.parse(argv)
    if name == "loss":
        values["shapes"] = values.pop("shape") or ()
    module = importlib.import_module(f"fastdhm.benchmarks.{name}")
    return module.bench(out=Path(values.pop("out")).expanduser(), as_json=values.pop("json"), **values)


COMMANDS = {"train": train, "eval": evaluate, "embed": embed, "data": data, "bench": bench}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 a benchmark's check failed, 2 a user's mistake, 128 + N stopped
    by signal N."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise unknown("command", argv[0], COMMANDS)
        return COMMANDS[argv[0]](argv[1:])
    except (UserError, OSError) as error:
        print(f"fastdhm: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastdhm: interrupted", file=sys.stderr)
        return 130
