"""What is decided before a run begins: the open values of its config, and its folder."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastdhm import methods, models
from fastdhm.config import TrainConfig
from fastdhm.data.sources.class_weights import check_class_weights, read_class_weights
from fastdhm.data.sources.source import is_reid
from fastdhm.engine import distributed
from fastdhm.engine.build import IMAGENET, training_transform
from fastdhm.engine.device import pick_device, pick_precision
from fastdhm.engine.optimizer import check_optimizer
from fastdhm.engine.saved.checkpoint import read_config
from fastdhm.engine.teacher import LIBRARIES
from fastdhm.errors import UserError
from fastdhm.ops.mimic_loss import use_fused
from fastdhm.system.console import Console
from fastdhm.system.folders import check_writable, held, new_folder
from fastdhm.system.paths import default_data_dir, expanded, short_name


def settle(config: TrainConfig) -> TrainConfig:
    """Check the names and replace what is left open by what this machine has."""
    models.check(config.arch, config.branches, dropout=config.dropout)
    if config.only_branch not in (None, "B0"):
        models.check(config.arch, (config.only_branch,))
    methods.check(config.method, config.direction, config.sampler, config.ce_weight, config.mimic_weight)
    if config.sampler == "structural":
        methods.branch_sets(config.branch_sets, models.DEFAULT_BRANCHES if config.branches is None else config.branches)
    training_transform(config)  # raise now if there is no such augmentation
    device = pick_device(config.device)
    if config.cuda_graphs and device.type != "cuda":
        raise UserError(f"cuda_graphs is true: the device is {device}, and only cuda has them; set --cuda-graphs false")
    check_processes(config, distributed.count())
    if config.optimizer != "sgd":
        check_optimizer(config)
    precision: Any = str(pick_precision(config.precision, device)).removeprefix("torch.")  # one that the config knows
    use_fused(config.impl, device.type)  # raise now, not in the first step
    dataset, data_dir = config.dataset, expanded(config.data_dir or default_data_dir()).absolute()
    if config.balanced_sampling and is_reid(dataset):
        raise UserError(
            f"balanced_sampling is true, for {dataset}: must be false, as people are told apart by features and not by "
            "classes"
        )
    kind, _, folder = dataset.partition(":")
    if kind in ("folder", "reid-folder") and folder:
        dataset = f"{kind}:{expanded(folder).absolute()}"
    class_weights = config.class_weights
    if isinstance(class_weights, str) and class_weights != "auto":
        class_weights = read_class_weights(expanded(class_weights))
    elif isinstance(class_weights, dict):
        check_class_weights(class_weights)
    weights = config.weights
    if weights not in (None, IMAGENET):
        weights = str(expanded(weights).absolute())
    teacher = config.teacher
    if teacher is not None and teacher.startswith(LIBRARIES):
        models.check(teacher)
    elif teacher is not None:
        teacher = str(expanded(teacher).absolute())
    if config.teacher_arch is not None:
        models.check(config.teacher_arch)
    short = short_name(dataset.rpartition("/")[2].replace(":", "-"))
    method = config.method + (f"-{config.only_branch}" if config.only_branch else "")
    name = f"{short}-{config.arch}-{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    return dataclasses.replace(
        config,
        dataset=dataset,
        data_dir=str(data_dir),
        weights=weights,
        teacher=teacher,
        class_weights=class_weights,
        run_dir=str(expanded(config.run_dir) if config.run_dir else Path("runs") / name),
        device=str(device) if distributed.count() == 1 else device.type,
        precision=precision,
    )


def check_weights(config: TrainConfig) -> None:
    """``ValueError`` if a new run should begin from a file or a run that does not exist."""
    if config.weights in (None, IMAGENET):
        return
    path, _ = models.chosen_weights(config.weights)
    if not path.exists():
        raise UserError(f"weights is {path}: no such file or run; give one, or {IMAGENET} for torchvision's")
    if path.is_dir():
        read_config(path)  # raises where it is no run


def check_processes(config: TrainConfig, count: int) -> None:
    """``ValueError`` unless a run can be shared by so many processes."""
    parts, images = config.accumulate, 2 if config.mixup or config.cutmix else 1
    whole = count * parts * images
    if config.batch_size % whole:
        numbers = {f"{count} processes": count, f"{parts} parts": parts, "pairs to mix": images}
        shares = [words for words, number in numbers.items() if number > 1]
        raise UserError(
            f"batch_size is {config.batch_size}, for {' and '.join(shares)}: must be a multiple of {whole}, such as "
            f"{max(1, config.batch_size // whole) * whole}"
        )
    if count > 1 and config.cuda_graphs:
        raise UserError(
            f"cuda_graphs is true, for {count} processes: they are for one process; set --cuda-graphs false"
        )


@contextmanager
def run_folder(path: Path, named: bool, console: Console) -> Iterator[Path]:
    """Hold the run directory ``path``. If it is taken and the user has not ``named`` it, hold another one.

    Folders that were made for the run and stay empty, because an error ends it, are removed.

    Raises:
        ValueError: another process writes there, or nothing can be written there.
    """
    check_writable(path, "run_dir")
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    if not named:
        path = new_folder(path)
        made = [path, *(folder for folder in made if folder in path.parents)]
    try:
        with held(path, "`fastdhm train`", console.print):
            yield path
    finally:
        with suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()
