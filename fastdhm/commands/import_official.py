"""``fastdhm import-official``: a checkpoint of the authors' released code becomes a run directory of ours."""

import dataclasses
from pathlib import Path

from rich.table import Table

from fastdhm import models
from fastdhm.config import TrainConfig
from fastdhm.data.loaders.crops import height_width
from fastdhm.data.sources.load import unknown_dataset
from fastdhm.data.sources.source import DATASETS
from fastdhm.engine.plan import print_plan
from fastdhm.engine.saved import checkpoint
from fastdhm.engine.saved.names import LAST, NETWORK
from fastdhm.engine.settle import run_folder, settle
from fastdhm.errors import UserError
from fastdhm.models.weights.official import released_modules
from fastdhm.system.console import Console, paste
from fastdhm.system.folders import contents

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}  # of the data sets that the released code trains on


def import_official(file: Path, config: TrainConfig, console: Console | None = None) -> Path:
    """Write the network in ``file`` to ``config.run_dir``, for ``eval``, ``embed`` and ``train --weights``.

    The folder holds ``config.yaml``, ``last.pt`` (the network with its branches, but no state to resume training) and
    ``network.safetensors`` (the plain network). The file names no classes, so they are numbered.

    Args:
        config: architecture, data set, image size and normalisation, and where to write. Branches and method come from
            the file: without branches it is a baseline, with them dhm (a dsl network looks the same).

    Returns:
        the folder.

    Raises:
        ValueError: see ``models.load_official``; or the number of classes does not fit the data set, or the folder is
            not empty.
    """
    console = console or Console()
    if config.dataset.partition(":")[0] not in {name.partition(":")[0] for name in DATASETS}:
        raise unknown_dataset(config.dataset)
    model = models.load_official(file, config.arch)
    branches = model.branch_names[1:]
    K = model.trunk.get_parameter("fc.weight").shape[0]
    if CLASSES.get(config.dataset, K) != K:
        raise UserError(
            f"{file} tells {K} classes apart, and {config.dataset} has {CLASSES[config.dataset]}: name the data set "
            "that it was trained on by --dataset"
        )
    if branches:
        config = dataclasses.replace(config, method="dhm", branches=branches)
    else:
        config = dataclasses.replace(config, method="baseline", branches=None)
    config = settle(config)
    assert config.run_dir is not None  # now it is settled
    run_dir, classes = Path(config.run_dir), checkpoint.numbered_classes(K)
    with run_folder(run_dir, True, console):
        if contents(run_dir):
            raise UserError(f"--out {run_dir} is there and not empty: choose another folder")
        checkpoint.save_checkpoint(run_dir / LAST, config, classes, {"model": model.state_dict()})
        checkpoint.save_network(run_dir / NETWORK, model.strip(), config, classes)
        checkpoint.write_config(run_dir, config)
    _tell(console, file, config, run_dir, model, K)
    return run_dir


def _tell(
    console: Console, file: Path, config: TrainConfig, run_dir: Path, model: models.BranchedModel, num_classes: int
) -> None:
    console.print(f"{file.name}: {config.arch}, {num_classes} classes", style="italic")
    table = Table()
    for column in ("branch", "from", "tensors", "parameters"):
        table.add_column(column, justify="right" if column in ("tensors", "parameters") else "left")
    for name, part in {"B0": model.trunk, **model.branches}.items():
        modules = ", ".join(released_modules(config.arch, name)) if name != "B0" else "the trunk"
        table.add_row(name, modules, f"{len(part.state_dict())}", f"{sum(p.numel() for p in part.parameters()):,}")
    console.print(table)
    height, width = height_width(config.image_size)
    scale = "; ".join(", ".join(f"{value:g}" for value in values) for values in (config.mean, config.std))
    print_plan(console, {
        "images": f"{height}x{width} pixels, mean and deviation {scale}, as {config.dataset}",
        "classes": f"the file does not name them: numbered 0 to {num_classes - 1}",
        "network": f"{run_dir / NETWORK} (B0, without the branches)",
        "check": paste("fastdhm", "eval", str(run_dir)),
    })  # fmt: skip
