"""``fastdhm runs``: the runs below a folder, newest first, by their files alone."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich import box
from rich.table import Table

from fastdhm.engine.saved.checkpoint import read_config
from fastdhm.engine.saved.judged import in_epochs, kept_of, validations
from fastdhm.engine.saved.names import CONFIG, FAILURE, LAST, LOG
from fastdhm.engine.saved.owed import owed
from fastdhm.engine.saved.record import read_log
from fastdhm.errors import UserError
from fastdhm.system.console import Console
from fastdhm.system.folders import is_held
from fastdhm.system.paths import printable, shown

DEPTH = 4  # folders below the one that is named; a comparison's runs lie two below it
State = Literal["running", "stopped", "finished", "failed", "unreadable"]


@dataclass(frozen=True)
class Listed:
    """A run as the list has it; what its files do not say is None."""

    run: str
    state: State
    changed: float
    """When its log or config was last written, in seconds since 1970."""
    epoch: float = 0.0
    epochs: int | None = None
    step: int = 0
    error: float | None = None
    """Top-1 validation error of B0, or of the branch trained alone, of the epoch that is kept; in percent."""
    dataset: str = ""
    arch: str = ""
    method: str = ""


def list_runs(folder: Path, *, as_json: bool = False, console: Console | None = None) -> list[Listed]:
    """Print and return the runs in ``folder`` and below, newest first.

    Raises:
        ValueError: ``folder`` is no folder, or holds no run.
    """
    console = console or Console()
    if not folder.is_dir():
        raise UserError(f"{shown(folder)} is no folder: name one that holds runs")
    found = sorted((_listed(path) for path in _runs_below(folder)), key=lambda run: -run.changed)
    if as_json:
        console.result(json.dumps([asdict(run) for run in found]))
        return found
    if not found:
        raise UserError(f"{shown(folder)} holds no run: `fastdhm train --run-dir FOLDER` writes one")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("run", "state", "epoch", "top-1 %", "age", "what"):
        table.add_column(column, justify="right" if column in ("epoch", "top-1 %", "age") else "left", overflow="fold")
    for run in found:
        epoch = "-" if run.epochs is None else f"{in_epochs(run.epoch)} / {run.epochs}"
        error, what = "-" if run.error is None else f"{run.error:.2f}", f"{run.dataset} {run.arch} {run.method}"
        name = os.path.relpath(run.run, printable(folder))
        table.add_row(name if name != "." else run.run, run.state, epoch, error, age(time.time() - run.changed), what)
    console.result(table)
    return found


def _runs_below(folder: Path) -> Iterator[Path]:
    """The run directories in ``folder``, itself among them. Nothing inside a run is looked at, nor hidden folders."""
    top = len(folder.parts)
    for place, folders, files in os.walk(folder):
        path = Path(place)
        deep = len(path.parts) - top >= DEPTH
        if CONFIG in files and {LAST, LOG} & {*files}:
            yield path
            deep = True
        folders[:] = [] if deep else [name for name in folders if not name.startswith(".")]


def _listed(path: Path) -> Listed:
    changed = max(file.stat().st_mtime for file in (path / CONFIG, path / LOG) if file.exists())
    name = printable(path)
    try:
        config, rows = read_config(path), read_log(path)
    except UserError:  # of another version, or damaged
        return Listed(name, "unreadable", changed)
    places = [row for row in rows if row["kind"] in ("step", "epoch")]
    at = max(places, key=lambda row: row["step"], default={"epoch": 0.0, "step": 0})
    state: State = "finished"
    if is_held(path):
        state = "running"
    elif (path / FAILURE).exists():
        state = "failed"
    elif owed(path, config, rows):
        state = "stopped"
    error = kept_of(validations(rows), config).get(f"val_error/{config.only_branch or 'B0'}")
    return Listed(
        name, state, changed, at["epoch"], config.epochs, int(at["step"]), error,
        config.dataset, config.arch, config.method,
    )  # fmt: skip


def age(seconds: float) -> str:
    """``40 s``, ``5 min``, ``3 h``, ``12 d``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
