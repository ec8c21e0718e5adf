"""``fastdhm train``: a recipe, a file and flags become the config of a run."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from fastdhm.cli.parser import HELP, Parser, asked
from fastdhm.cli.processes import add_processes, in_processes, told_once
from fastdhm.config import TrainConfig
from fastdhm.errors import UserError, few
from fastdhm.recipes import recipe, warm_up
from fastdhm.system.paths import expanded

ORDER = (
    "A flag beats the file of --config, and the file beats the recipe. The defaults below are those of the recipe for "
    "the data set, network, method and preset that stand beside --help. N is a whole number, X a number, BOOL true "
    "or false; null means that nothing is given. docs/settings.md says more of each."
)
BESIDE = ("resume", "processes", "restarts")  # flags that are no values of a run
EXAMPLES = """\
Examples:
  # your own images: photos/train/CLASS/*.jpg and photos/val/CLASS/*.jpg
  fastdhm train --dataset folder:photos --run-dir runs/first

  # on all GPUs of this machine; on several machines, by torchrun or by SLURM's srun
  fastdhm train --dataset imagenet --processes auto
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 \\
      -m fastdhm train --dataset imagenet --run-dir /shared/runs/first
  srun --ntasks-per-node 8 fastdhm train --dataset imagenet --run-dir /shared/runs/first

  # go on with a run that was stopped
  fastdhm train --resume runs/first

  # the paper's ResNet-32 on CIFAR-100, without mimicking
  fastdhm train --dataset cifar100 --arch resnet32 --method baseline

  # what a run would be, as YAML that --config reads
  fastdhm train --dataset cifar100 --preset fast --print-config
"""


def _parser() -> Parser:
    """The parser of ``fastdhm train``: a flag for every value of :class:`TrainConfig`."""
    parser = Parser(
        "train",
        f"Train a network. {ORDER}",
        usage="fastdhm train [--FLAG VALUE ...]",
        epilog=EXAMPLES,
    )
    parser.flag("--resume", "Go on with the run in this folder, bit for bit.", metavar="RUN")
    add_processes(parser)
    parser.flag("--restarts", "How often to start all of them anew when one fails.", int, metavar="N")
    parser.add_run_arguments()
    return parser


def resolve_training(argv: list[str]) -> tuple[TrainConfig, bool]:
    """The config of ``fastdhm train ARGV`` (recipe, then --config, then flags), and whether it resumes a run."""
    config, beside = _resolved(argv)
    return config, beside["resume"] is not None


def _resolved(argv: list[str]) -> tuple[TrainConfig, dict[str, Any]]:
    """The config, and what the flags in :data:`BESIDE` were given; None for those that were not."""
    parser = _parser()
    asks, flags = asked(argv)
    given = parser.given(flags)
    beside = {name: given.pop(name, None) for name in BESIDE}
    resume = beside["resume"]
    values = (recipe_for(given) if resume is None else _resumed(expanded(resume), given)) | given
    if set(asks) & set(HELP):
        parser.show(asks, values)
    config = _config(values)
    if asks:
        parser.show(asks, values)
    return config, beside


def _config(values: dict[str, Any]) -> TrainConfig:
    try:
        return TrainConfig(**values)
    except ValueError as error:
        raise UserError(str(error)) from error


def config_of(given: dict[str, Any], run_dir: str | None = None) -> TrainConfig:
    """The config of the run in ``run_dir``, or of the recipe, with what is ``given``."""
    if run_dir is None:
        values = recipe_for(given)
    else:
        from fastdhm.engine.saved.checkpoint import read_config

        values = dataclasses.asdict(read_config(expanded(run_dir)))
    return _config(values | given)


def recipe_for(given: dict[str, Any]) -> dict[str, Any]:
    """The recipe for what is ``given``, with the warm-up that a scaled learning rate needs."""
    base = TrainConfig()
    usual = "baseline" if given.get("only_branch") else base.method  # nothing else trains a branch alone
    names = (given.get("dataset", base.dataset), given.get("arch"), given.get("method", usual))
    values = recipe(*names, given.get("preset", base.preset))
    if "optimizer" in given:
        from fastdhm.engine.optim.by_name import fitted

        values |= fitted(values, given["optimizer"], given.get("lr"))
    optimizer = (values | given).get("optimizer", base.optimizer)
    if optimizer != "sgd" and given.get("momentum", base.momentum) != base.momentum:  # old runs may have such a pair
        raise UserError(
            f"momentum is {given['momentum']:g}: must be left out with {optimizer}: it is sgd's; for others see "
            "--optimizer-args"
        )
    if given.get("scale_lr"):
        values |= warm_up(values | given, given.get("epochs", values["epochs"]))
    return values


def _resumed(run_dir: Path, given: dict) -> dict:
    """The values of a run to go on with; ``ValueError`` if ``given`` would change what it learns."""
    from fastdhm.engine.saved.checkpoint import RESUMABLE, differing, moved, read_config

    config = dataclasses.replace(read_config(run_dir), run_dir=str(run_dir), max_steps=None)
    try:
        new = dataclasses.replace(config, **given)
    except ValueError as error:
        raise UserError(str(error)) from error
    changed = differing(config, new, free=("epochs", *RESUMABLE, *moved(config, new)))
    if changed:
        raise UserError(
            f"--resume keeps what {run_dir} learns, and this would change it ({few(changed, 2)}): "
            "leave it out, or start a new run"
        )
    return dataclasses.asdict(config)


def run(argv: list[str]) -> int:
    """``fastdhm train``; returns the exit status."""
    with told_once():
        config, beside = _resolved(argv)
        resume, restarts = beside["resume"] is not None, beside["restarts"] or 0
        if restarts and not (config.run_dir or resume):
            raise UserError(f"restarts is {restarts}: needs a named --run-dir")
        status = in_processes(["train", *argv], beside["processes"], config.device, restarts, partial(_check, config))
    if status is not None:
        return status
    from fastdhm.engine.saved.names import CONFIG
    from fastdhm.engine.train import train as run_training
    from fastdhm.system.place import attempt

    # started again by a launcher because a process failed, after the run had begun
    resume = resume or (attempt() > 0 and config.run_dir is not None and (Path(config.run_dir) / CONFIG).exists())
    outcome = run_training(config, resume=resume)
    return 0 if outcome.finished or outcome.signal is None else 128 + outcome.signal


def _check(config: TrainConfig, processes: int) -> None:
    from fastdhm.engine.settle import check_processes

    check_processes(config, processes)
