"""Plots of a comparison: training and validation curves as in Figures 2 and 3 of the paper, and error over time.

A line is the mean over the finished seeds, and the band around it is their range, as in the paper's Figure 3.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from fastdhm.compare.arms import Arm
from fastdhm.compare.results import Results
from fastdhm.compare.runs import RunState
from fastdhm.engine.saved.judged import judged_on
from fastdhm.system.plotting import save_figure

Row = dict[str, Any]
MOST_NOTES = 2  # above a picture; more would leave it no room
Curve = list[tuple[float, float, float, float]]  # x, mean, lowest, highest


def plot_results(folder: Path, results: Results) -> None:
    """Write ``curves.png``, and ``wallclock.png`` if the logs have times; nothing until a run is finished."""
    if not any(state.status == "finished" for state in results.states):
        return
    plot_curves(folder / "curves.png", results)
    if any(results.train_seconds(arm) for arm in results.comparison.arms):
        plot_wallclock(folder / "wallclock.png", results)


def plot_curves(path: Path, results: Results) -> None:
    """Training error (on each epoch's augmented images, during training) and error on the evaluation images."""
    groups = results.comparison.groups
    figure, axes = figure_of(results, rows=len(groups), columns=2)
    for group, (train, val) in zip(groups, axes, strict=True):
        for colour, arm in coloured(results, group):
            runs = results.of(arm, "finished")
            branch = runs[0].main_branch
            label = f"{arm.label} (n = {len(runs)})" + (f", {branch}" if branch != "B0" else "")
            _draw(train, curve(runs, _epochs, f"train_error/{branch}"), colour, label)
            _draw(val, curve(runs, _validations, f"val_error/{branch}"), colour, label)
        for axis, what in ((train, "training"), (val, judged(results, group))):
            _finish(axis, f"{group}: {what}" if group else what, "epoch")
        train.set_ylabel(f"top-1 error of {main_branches(results, group)}, %")
    save_figure(figure, path, dpi=130)


def plot_wallclock(path: Path, results: Results) -> None:
    """Validation error over training time: the time of the steps, without validation and interruptions."""
    groups = results.comparison.groups
    columns = min(2, len(groups))
    figure, axes = figure_of(results, rows=-(-len(groups) // columns), columns=columns)
    places = [axis for row in axes for axis in row]
    longest = max(found.mean for arm in results.comparison.arms if (found := results.train_seconds(arm)))
    unit, name = (3600, "hours") if longest > 2 * 3600 else (60, "minutes") if longest > 120 else (1, "seconds")
    for group, axis in zip(groups, places, strict=False):
        for colour, arm in coloured(results, group):
            runs = [run for run in results.timed(arm) if run.train_seconds is not None]
            if not runs:
                continue
            branch = runs[0].main_branch
            points = curve(runs, _validations, f"val_error/{branch}", lambda row: row.get("train_seconds", 0.0) / unit)
            _draw(axis, points, colour, f"{arm.label} (n = {len(runs)})")
        _finish(axis, group, f"training time, {name} ({machine(results, group)})")
        axis.set_ylabel(f"{judged(results, group)} top-1 error of {main_branches(results, group)}, %")
    for axis in places[len(groups) :]:
        axis.set_visible(False)
    save_figure(figure, path, dpi=130)


def curve(
    runs: list[RunState],
    rows_of: Callable[[RunState], Iterable[Row]],
    key: str,
    x_of: Callable[[Row], float] = lambda row: row["epoch"],
) -> Curve:
    """Mean and range over the runs, at every epoch that all runs have; x is the mean of ``x_of``."""
    by_epoch: dict[float, list[Row]] = {}
    for run in runs:
        for row in rows_of(run):
            if key in row:
                by_epoch.setdefault(row["epoch"], []).append(row)
    points = []
    for _, rows in sorted(by_epoch.items()):
        if len(rows) == len(runs):
            values = [row[key] for row in rows]
            points.append((fmean(x_of(row) for row in rows), fmean(values), min(values), max(values)))
    return points


def _epochs(run: RunState) -> list[Row]:
    return run.epoch_rows


def _validations(run: RunState) -> list[Row]:
    return run.validations


def machine(results: Results, group: str) -> str:
    """What those of the group's runs were trained on whose times count."""
    names = {run.machine for arm in results.comparison.members(group) for run in results.timed(arm)}
    return " or ".join(sorted(names))


def judged(results: Results, group: str) -> str:
    """The kind of images that the group's runs are evaluated on after an epoch."""
    return " or ".join(dict.fromkeys(judged_on(arm.config) for arm in results.comparison.members(group)))


def main_branches(results: Results, group: str) -> str:
    """The branches whose error is drawn: B0, or a branch that is trained alone."""
    return " or ".join(dict.fromkeys(arm.config.only_branch or "B0" for arm in results.comparison.members(group)))


def coloured(results: Results, group: str) -> list[tuple[str, Arm]]:
    """The arms with finished runs, each with its colour, which does not depend on the other arms."""
    arms = results.comparison.members(group)
    return [(f"C{i % 10}", arm) for i, arm in enumerate(arms) if results.of(arm, "finished")]


def figure_of(results: Results, rows: int, columns: int, lines: str = "lines: mean over seeds; bands: their range"):
    """A figure and its axes, below a title and what limits the comparison."""
    import textwrap

    from matplotlib.figure import Figure  # slow to load, and only plots need it

    width = 5.5 * columns
    figure = Figure(figsize=(width, 3.8 * rows + 0.6), layout="constrained")
    words = [results.comparison.title, lines]
    if not results.complete:
        done = sum(state.status in ("finished", "failed") for state in results.states)
        words.append(f"not complete: {done} of {len(results.states)} runs")
    notes = results.comparison.notes
    if len(notes) > MOST_NOTES:
        notes = (f"{len(notes)} notes on these runs are in README.md",)
    texts = [results.comparison.title, "; ".join(words[1:]), *notes]
    per_line = round(width * 15)
    wrapped = "\n".join(part for text in texts for part in textwrap.wrap(text, per_line))
    figure.suptitle(wrapped, fontsize=9)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _draw(axis, points: Curve, colour: str, label: str) -> None:
    if not points:
        return
    x, mean, low, high = zip(*points, strict=True)
    label = label if label[:1] != "_" else f" {label}"  # matplotlib leaves labels that begin with _ out of the legend
    axis.plot(x, mean, color=colour, lw=1.5, marker="o" if len(x) < 4 else None, ms=3, label=label)
    axis.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)


def _finish(axis, title: str, x_label: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(x_label)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlim(0, None)
    if axis.lines:
        axis.legend(frameon=False, fontsize=8)
