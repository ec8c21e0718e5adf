"""``fastdhm train``: a recipe, a file and flags become the config of a run."""

import dataclasses
from pathlib import Path

from fastdhm.cli.parser import Parser
from fastdhm.config import TrainConfig
from fastdhm.errors import UserError
from fastdhm.recipes import recipe, warm_up
from fastdhm.system.paths import expanded


def _parser() -> Parser:
    """The parser of ``fastdhm train``: a flag for every value of :class:`TrainConfig`."""
    parser = Parser(
        "train",
        "Train a network. Flags override --config, which overrides the recipe of the data set; --print-config shows "
        "the values that come out.",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the values below")
    parser.add_argument("--resume", metavar="RUN", default=None, help="go on with the run in this folder, bit for bit")
    parser.add_class_arguments(TrainConfig)
    return parser


def resolve_training(argv: list[str]) -> tuple[TrainConfig, bool]:
    """The config of ``fastdhm train ARGV`` (recipe, then --config, then flags), and whether it resumes a run."""
    parser = _parser()
    flags = [a for a in argv if not a.startswith(("--print_config", "--print-config"))]
    given = parser.parse(flags, defaults=False)
    resume = given.pop("resume", None)
    if resume is None:
        base = TrainConfig()
        usual = "baseline" if given.get("only_branch") else base.method  # nothing else trains a branch alone
        names = (given.get("dataset", base.dataset), given.get("arch"), given.get("method", usual))
        base = recipe(*names, given.get("preset", base.preset))
        if given.get("scale_lr"):
            base |= warm_up(base | given, given.get("epochs", base["epochs"]))
    else:
        base = _resumed(expanded(resume), given)
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
    from fastdhm.engine.saved.checkpoint import RESUMABLE, differing, moved, read_config

    config = dataclasses.replace(read_config(run_dir), run_dir=str(run_dir), max_steps=None)
    try:
        new = dataclasses.replace(config, **given)
    except ValueError as error:
        raise UserError(str(error)) from error
    changed = differing(config, new, free=(*RESUMABLE, *moved(config, new)))
    if changed:
        raise UserError(
            f"--resume goes on with the config in {run_dir}; this would change it ({', '.join(changed)}). "
            f"Only {', '.join(RESUMABLE)} can be set anew; for anything else start a new run"
        )
    return dataclasses.asdict(config)


def run(argv: list[str]) -> int:
    """``fastdhm train``; returns the exit status."""
    config, resume = resolve_training(argv)
    from fastdhm.engine.device import use_processors
    from fastdhm.engine.train import train as run_training

    use_processors()
    outcome = run_training(config, resume=resume)
    return 0 if outcome.whole else 128 + outcome.signal
