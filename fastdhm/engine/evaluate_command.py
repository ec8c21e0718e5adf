"""``fastdhm eval``: the test errors of a run, a checkpoint or a stripped network."""

import dataclasses
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from fastdhm import models
from fastdhm.config import TrainConfig
from fastdhm.data import LoadedData
from fastdhm.data.transforms import DeviceTransform
from fastdhm.engine import checkpoint
from fastdhm.engine.device import pick_device, pick_precision
from fastdhm.engine.evaluate import evaluate
from fastdhm.engine.run import build_model, open_data
from fastdhm.errors import UserError


def evaluate_path(
    path: Path,
    *,
    data_dir: str | None = None,
    loader: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    as_json: bool = False,
) -> dict[str, dict[str, float]]:
    """Evaluate what is at ``path`` on its run's validation images, print a table (or JSON) and return the errors.

    A run directory stands for the checkpoint its stripped network comes from, and for that network. The branches are
    those of the checkpoint, B0 first; ``network`` is the plain network alone.

    Raises:
        ValueError: nothing of fastdhm at ``path``, or data that is not there.
    """
    networks, config, classes = load(path)
    changes = {"data_dir": data_dir, "loader": loader, "workers": workers, "device": device}
    config = dataclasses.replace(config, **{name: value for name, value in changes.items() if value is not None})
    console = Console(stderr=as_json)
    data = open_data(dataclasses.replace(config, batch_size=1), console)
    try:
        if tuple(data.classes) != classes:
            raise UserError(f"{path} was trained on other classes than {config.dataset} has")
        results = {}
        for network in networks:
            results |= _errors(network, config, data)
    finally:
        data.close()
    _print(results, path, console, as_json)
    return results


def load(path: Path) -> tuple[list[nn.Module], TrainConfig, tuple[str, ...]]:
    """The networks at ``path`` (branched, plain, or both), the config of their run and the class names."""
    if path.is_dir():
        config = checkpoint.read_config(path)
        best = config.keep == "best" and (path / "best.pt").exists()
        networks, config, classes = load(path / ("best.pt" if best else "last.pt"))
        stripped = path / "network.safetensors"
        return networks + (load(stripped)[0] if stripped.exists() else []), config, classes
    if not path.exists():
        raise UserError(f"{path} is not there: name a run directory, a checkpoint (.pt) or a network (.safetensors)")
    if path.suffix == ".safetensors":
        state, config, classes = checkpoint.load_network(path)
        network = models.build(config.arch, len(classes), branches=()).strip()
        checkpoint.load_weights(network, state, path, config.arch)
        return [network], config, classes
    saved = checkpoint.load_checkpoint(path)
    config, classes = checkpoint.config_from(saved["config"], path), tuple(saved["classes"])
    model = build_model(config, len(classes))
    checkpoint.load_weights(model, saved["model"], path, config.arch)
    return [model], config, classes


def _errors(network: nn.Module, config: TrainConfig, data: LoadedData) -> dict[str, dict[str, float]]:
    device = pick_device(config.device)
    network = network.to(device, memory_format=torch.channels_last)
    transform = DeviceTransform(config.mean, config.std).to(device)
    # the run's own number format, so that its numbers come out again; only float16 has no CPU form
    name = "float32" if (config.precision, device.type) == ("float16", "cpu") else config.precision
    errors = evaluate(network, data.val, transform, device, pick_precision(name, device), config.image_size)
    names = network.branch_names if isinstance(network, models.BranchedModel) else ("network",)
    columns = zip(names, errors.top1_M, errors.top5_M, strict=True)
    return {name: {"top1_error": top1, "top5_error": top5} for name, top1, top5 in columns}


def _print(results: dict[str, dict[str, float]], path: Path, console: Console, as_json: bool) -> None:
    if as_json:
        print(json.dumps(results))
        return
    table = Table(title=f"test error of {path}", title_justify="left")
    for column in ("branch", "top-1 %", "top-5 %"):
        table.add_column(column, justify="left" if column == "branch" else "right")
    for name, row in results.items():
        table.add_row(name, *(f"{value:.4f}" for value in row.values()), style="bold" if name == "B0" else "")
    console.print(table)
