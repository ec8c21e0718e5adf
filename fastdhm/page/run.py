"""The page of a run, from the files in its folder: config, log, and the classes in its checkpoint."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fastdhm import models
from fastdhm.config import TrainConfig
from fastdhm.engine.saved.checkpoint import load_checkpoint, read_config
from fastdhm.engine.saved.judged import best_of, in_epochs, judged_images, judged_on, validations
from fastdhm.engine.saved.names import LAST, REPORT
from fastdhm.engine.saved.owed import at_end
from fastdhm.engine.saved.record import read_log, term_name
from fastdhm.errors import UserError
from fastdhm.page.early_exit import early_exit_section
from fastdhm.page.html import facts, figures, folded, note, page, table
from fastdhm.page.per_class import per_class_sections
from fastdhm.page.svg import Points, curves, heat_map, number
from fastdhm.system.files import write_text
from fastdhm.system.paths import printable

REFRESH_S = 20
Rows = Sequence[dict[str, Any]]


def keep_run_page(run_dir: Path, say: Callable[[str], None]) -> None:
    """Write the page of a run that trains; one that cannot be written costs the run nothing, and ``say`` tells it."""
    try:
        write_text(run_dir / REPORT, run_page(run_dir, live=True))
    except (UserError, OSError) as error:
        say(f"the report is left out: {error}")


def run_page(run_dir: Path, *, live: bool = False) -> str:
    """The page of the run in ``run_dir``, finished or not. ``live``: until its end a browser loads it again.

    Raises:
        ValueError: ``run_dir`` holds no run.
    """
    config, rows = read_config(run_dir), read_log(run_dir)
    classes = _classes(run_dir)
    steps, epochs = ([row for row in rows if row["kind"] == kind] for kind in ("step", "epoch"))
    ended = bool(epochs) and at_end(epochs[-1], config)
    at = max((row["epoch"] for row in (*steps, *epochs)), default=0.0)
    about = [f"{printable(run_dir)}: {in_epochs(at)} of {config.epochs} epochs"]
    if not epochs:
        about.append("No epoch is finished yet: errors come with the first validation.")
    validated = max((row["step"] for row in validations(rows)), default=0)
    log = steps or epochs  # a short run has no log points
    sections = {
        "Branches": _branches(config, rows, classes),
        "Curves": figures(*_curves(log, epochs, config)),
        **per_class_sections(run_dir, validated),
        "Early exit": early_exit_section(run_dir, validated),
        "Terms of the loss": _terms(log),
        "Speed": figures(*_speed(log)),
        "Machine": facts(_machine(config, rows)),
        "Settings": folded("every value of the run", facts(_settings(config)))
        + folded(f"{len(classes):,} classes", note(", ".join(classes[:200]) + ", ..." * (len(classes) > 200)))
        * bool(classes),
    }
    title = f"{config.arch}, {config.method}, {config.dataset}"
    return page(title, about, sections, refresh_s=REFRESH_S if live and not ended else None)


def _classes(run_dir: Path) -> tuple[str, ...]:
    try:
        return tuple(load_checkpoint(run_dir / LAST, mmap=True)["classes"])
    except UserError:  # before the first checkpoint
        return ()


def _branches(config: TrainConfig, rows: Rows, classes: Sequence[str]) -> str:
    """What each branch costs and reaches."""
    validated = validations(rows)
    if not validated:
        return ""
    last = validated[-1]
    names = sorted(key.partition("/")[2] for key in last if key.startswith("val_error/"))
    best = best_of(validated, names[0])
    costs = models.cost_cells(config.arch, len(classes), config.image_size, tuple(names)) if classes else {}
    head = ["branch", "top-1 %", "top-5 %", f"best epoch ({in_epochs(best['epoch'])}), top-1 %"]
    head += ["parameters", "multiply-adds"] * bool(costs)
    cells = []
    for name in names:
        values = (last.get(f"val_error/{name}"), last.get(f"val_top5_error/{name}"), best.get(f"val_error/{name}"))
        row = [name, *("-" if value is None else f"{value:.2f}" for value in values)]
        cells.append([*row, *(costs.get(name, ()))])
    told = f"{judged_on(config).capitalize()} error after {in_epochs(last['epoch'])} epochs, on {judged_images(config)}"
    shared = ". A branch costs its own layers and the trunk up to its fork" * bool(costs)
    return note(f"{told}{shared}.") + table(head, cells)


def _curves(log: Rows, epochs: Rows, config: TrainConfig) -> Iterable[str]:
    errors = {f"train {name}": points for name, points in _named(log, "train_error/").items()}
    yield curves(errors | _named(epochs, "val_error/"), "epoch", "top-1 error, %")
    yield curves(_named(log, "ce/") | {"weighted sum": _points(log, "loss")}, "epoch", "training loss")
    losses = {f"train {name}": points for name, points in _named(log, "ce/").items()}
    yield curves(losses | _named(epochs, "val_ce/"), "epoch", "cross-entropy")
    yield curves({"learning rate": _points(log, "lr")}, "epoch", "learning rate")


def _terms(log: Rows) -> str:
    """The M x M terms: over time as a heat map, and the last ones as a matrix."""
    names = sorted(_named(log, "ce/"))
    said = {key.partition("/")[2].partition("->")[0] for row in log for key in row}
    teachers = [*names, *(["teacher"] if "teacher" in said else [])]
    if len(teachers) < 2:
        return ""
    terms = {(p, q): term_name(p, q) for p, q in itertools.product(teachers, names)}
    rows = {p if p == q else f"{p} → {q}": _points(log, key) for (p, q), key in terms.items()}
    mimicking = {name: points for name, points in rows.items() if "→" in name}
    own = {name: points for name, points in rows.items() if "→" not in name}
    last = {key: next((row[key] for row in reversed(log) if key in row), None) for key in terms.values()}
    grid = [[p, *("-" if (v := last[terms[p, q]]) is None else number(v) for q in names)] for p in teachers]
    maps = figures(
        heat_map(own, "epoch", "cross-entropy of each branch"),
        heat_map(mimicking, "epoch", "mimicking, teacher → student"),
    )
    told = "The last terms: cross-entropies in the diagonal, elsewhere how far the column is from the row, its teacher."
    return maps + note(told) + table(["teacher", *names], grid)


def _speed(log: Rows) -> Iterable[str]:
    yield curves({"images per second": _points(log, "images_per_s")}, "epoch", "images per second")
    waits = [(x, 100 * y) for x, y in _points(log, "data_wait")]
    yield curves({"waiting for data": waits}, "epoch", "time that steps waited for data, %")


def _machine(config: TrainConfig, rows: Rows) -> dict[str, str]:
    shown = {name: str(getattr(config, name)) for name in ("device", "precision", "loader", "workers", "compile")}
    peaks = [row["peak_mib"] for row in rows if "peak_mib" in row]
    if peaks:
        shown["peak memory"] = f"{max(peaks):,.0f} MiB"
    for key, name in (("startup_seconds", "from the command to the first step"), ("train_seconds", "training")):
        seconds = [row[key] for row in rows if key in row]
        if seconds:
            shown[name] = f"{seconds[-1]:,.1f} s"
    return shown


def _settings(config: TrainConfig) -> dict[str, str]:
    return {
        name: ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in dataclasses.asdict(config).items()
    }


def _points(rows: Rows, key: str) -> Points:
    return [(row["epoch"], row[key]) for row in rows if key in row]


def _named(rows: Rows, prefix: str) -> dict[str, Points]:
    """The curves of every key with this prefix, under the name behind it."""
    names = sorted({key.removeprefix(prefix) for row in rows for key in row if key.startswith(prefix)})
    return {name: _points(rows, prefix + name) for name in names}
