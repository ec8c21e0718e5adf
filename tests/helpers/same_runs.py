"""Whole runs on one seed by any number of processes, in float64, so that their numbers can be compared closely."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from figures import undrawn
from many_processes import outputs

from fastdhm.config import TrainConfig
from fastdhm.data.augment.transforms import DeviceTransform
from fastdhm.engine import report
from fastdhm.engine import train as engine
from fastdhm.engine.saved.checkpoint import load_checkpoint
from fastdhm.engine.saved.record import read_log
from fastdhm.engine.train import train
from fastdhm.system.console import Console

BASE = {
    "dataset": "synthetic:96",
    "arch": "resnet8",
    "image_size": 16,
    "batch_size": 24,
    "eval_batch_size": 20,
    "epochs": 1,
    "max_steps": 3,
    "log_every": 1,
    "lr": 0.02,
    "device": "cpu",
    "precision": "float32",
    "compile": "off",
    "loader": "torch",
    "workers": 0,
    "sync_bn": True,
}
Cases = dict[str, dict[str, Any]]


@contextmanager
def in_float64() -> Iterator[None]:
    """Inside, a run whose precision is float32 computes in float64."""
    transform = DeviceTransform.forward

    def wide(self, image_BHWC, index_B, epoch, dtype=torch.float64, **views):
        return transform(self, image_BHWC, index_B, epoch, dtype, **views)

    def ranked(*args):  # as always: features are float32
        torch.set_default_dtype(torch.float32)
        return rank(*args)

    before, rank = torch.get_default_dtype(), engine.rank_at_end
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(DeviceTransform, "forward", wide), mock.patch.object(engine, "rank_at_end", ranked):
            yield
    finally:
        torch.set_default_dtype(before)


def train_all(cases: Cases, folder: Path) -> None:
    """A run for each case, in ``folder``, by this process alone or by all those of its group."""
    for name, settings in cases.items():
        config = BASE | {"run_dir": str(folder / name), "data_dir": str(folder.parent / "data")} | settings
        wide = config.pop("wide", True)
        with in_float64() if wide else nullcontext(), mock.patch.object(report, "save_figure", undrawn):
            train(TrainConfig(**config), console=Console(quiet=True))


def train_all_by(number: int, cases: Cases, folder: Path) -> None:
    """The same by so many processes, which do all the runs."""
    helpers, given = str(Path(__file__).parent), json.dumps(cases)
    program = f"""
    import json, pathlib
    sys.path.insert(0, {helpers!r})
    from same_runs import train_all
    with d.joined(torch.device("cpu")):
        train_all(json.loads({given!r}), pathlib.Path({str(folder)!r}))
    """
    outputs(program, number)


def numbers(run_dir: Path) -> dict[str, float]:
    """All that a run says and leaves, by name: the log's numbers but those of time and memory, weights and buffers."""
    timed = {"images_per_s", "data_wait", "process_seconds", "train_seconds", "val_seconds", "peak_mib"}
    rows = [row for row in read_log(run_dir) if row["kind"] != "startup"]
    found = {
        f"{row['kind']} {row['step']} {name}": value
        for row in rows
        for name, value in row.items()
        if isinstance(value, (int, float)) and name not in timed
    }
    saved = load_checkpoint(run_dir / "last.pt")
    for part in ("model", "average"):
        for name, tensor in saved.get(part, {}).items():
            found |= {f"{part} {name} {i}": value for i, value in enumerate(tensor.double().flatten().tolist())}
    return found
