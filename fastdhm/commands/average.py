"""``fastdhm average``: the mean of several networks' weights, with batch-norm statistics of its own."""

import copy
import dataclasses
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from fastdhm.config import TrainConfig
from fastdhm.data import LoadedData
from fastdhm.data.augment.transforms import DeviceTransform
from fastdhm.data.loaders.ahead import copied_ahead
from fastdhm.data.loaders.crops import height_width
from fastdhm.data.sources.identity import changes
from fastdhm.engine.build import Trained, check_finite, load_trained, open_data, training_transform
from fastdhm.engine.device import autocast, pick_device, pick_own_precision, placed
from fastdhm.engine.evaluate import Errors, evaluate
from fastdhm.engine.saved import checkpoint
from fastdhm.engine.saved.judged import is_chosen, judged_images, judged_on
from fastdhm.errors import UserError
from fastdhm.system.console import Console
from fastdhm.system.folders import check_writable
from fastdhm.system.paths import shown

ALIKE = ("arch", "only_branch", "image_size", "mean", "std")  # what networks must share for their mean to be one


def average(
    paths: Sequence[Path],
    *,
    out: Path,
    images: int = 10_000,
    dataset: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """Write the mean of the plain networks at ``paths`` to ``out``, a network file; print the errors of all.

    The statistics of batch norm are not averaged: they are computed anew, on ``images`` training images as the first
    run augments them, without mixes.

    Raises:
        ValueError: fewer than two paths, networks that differ in more than their weights, an ``out`` that exists or
            cannot be written, images that are not there.
    """
    console = console or Console()
    if len(paths) < 2:
        raise UserError(f"only {shown(paths[0])} is given: name two or more runs, checkpoints or networks")
    if images < 1:
        raise UserError(f"images is {images}: must be 1 or more")
    if out.exists():
        raise UserError(f"{shown(out)} is there already: choose another --out, or remove it")
    check_writable(out.parent, "the folder of --out")
    found = [load_trained(path) for path in paths]
    networks = [trained.plain for trained in found]
    first = found[0]
    for path, trained in zip(paths, found, strict=True):
        check_finite(trained, path)
        _check_alike(first, trained, paths[0], path)
    given: dict[str, Any] = {"dataset": dataset, "data_dir": data_dir, "device": device}
    config = dataclasses.replace(first.config, **{name: value for name, value in given.items() if value is not None})
    with closing(open_data(config, console)) as data:
        if first.classes not in (data.classes, checkpoint.numbered_classes(len(data.classes))):
            raise UserError(f"{shown(paths[0])} was trained on other classes than {config.dataset} has")
        for change in changes(first.data, data.identity):
            console.print(f"{config.dataset} is not what {shown(paths[0])} has learnt from: {change}")
        judge = _judge(config, data)
        errors = {shown(path): judge(network) for path, network in zip(paths, networks, strict=True)}
        mean = mean_network(networks)
        errors["mean"] = judge(mean)
        seen = renew_batch_norms(mean, config, data, images)
        if seen:
            errors["mean, batch norm anew"] = judge(mean)
    same = all(trained.data == first.data for trained in found)
    chosen = any(is_chosen(path, trained.config) for path, trained in zip(paths, found, strict=True))
    about = dataclasses.replace(first.config, keep="best" if chosen else "last")
    checkpoint.save_network(out, mean.cpu(), about, first.classes, first.data if same else None, averaged=True)
    title = f"{judged_on(config)} error, on {data.val.num_samples:,} images: {judged_images(config)}"
    _print(console, title, errors)
    console.print(f"network: {out} (batch norm from {seen:,} training images)" if seen else f"network: {out}")
    return out


def mean_network(networks: Sequence[nn.Module]) -> nn.Module:
    """A network whose tensors are the means of theirs, computed in float64; counters are the first's."""
    mean, states = copy.deepcopy(networks[0]), [network.state_dict() for network in networks]
    mean.load_state_dict({name: _mean([state[name] for state in states]) for name in states[0]})
    return mean


def _mean(tensors: list[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([tensor.double().cpu() for tensor in tensors]).mean(0).to(tensors[0].dtype)


def renew_batch_norms(network: nn.Module, config: TrainConfig, data: LoadedData, images: int) -> int:
    """Compute the statistics of a network's batch norms on so many augmented training images, or one epoch of them.

    Returns:
        How many images it saw; 0 if it has no batch norm.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return 0
    device, seen = pick_device(config.device), 0
    transform = training_transform(config).to(device)

    def inputs() -> Generator[Tensor, None, None]:
        nonlocal seen
        with data.train.epoch(0) as batches:
            for batch in islice(copied_ahead(batches, device), -(-images // config.batch_size)):
                seen += len(batch.target_B)
                yield transform(batch.image_BHWC, batch.index_B, 0, view_B=batch.view_B)

    with autocast(device, pick_own_precision(config.precision, device)), closing(inputs()) as images_of_all:
        update_bn(images_of_all, network)
    return seen


def _judge(config: TrainConfig, data: LoadedData) -> Callable[[nn.Module], Errors]:
    """What measures a network's errors on the validation images."""
    device, side = pick_device(config.device), min(height_width(config.image_size))
    transform, precision = (
        DeviceTransform(config.mean, config.std).to(device),
        pick_own_precision(config.precision, device),
    )
    return lambda network: evaluate(placed(network, device), data.val, transform, device, precision, side)


def _check_alike(first: Trained, other: Trained, path: Path, other_path: Path) -> None:
    """``ValueError`` unless the mean of two networks could be one."""
    differing = [name for name in ALIKE if getattr(first.config, name) != getattr(other.config, name)]
    for name in differing:
        one, two = getattr(first.config, name), getattr(other.config, name)
        raise UserError(
            f"{shown(other_path)} has {name} {two}, and {shown(path)} has {one}: average networks of one kind"
        )
    if other.classes != first.classes:
        raise UserError(
            f"{shown(other_path)} tells other classes apart than {shown(path)}: average networks of one kind"
        )


def _print(console: Console, title: str, errors: dict[str, Errors]) -> None:
    console.result(title, style="italic")
    table = Table()
    for column in ("network", "top-1 %", "top-5 %"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, found in errors.items():
        cells = ("-" if value is None else f"{value:.4f}" for value in (found.top1_M[0], found.top5_M[0]))
        table.add_row(name, *cells)
    console.result(table)
