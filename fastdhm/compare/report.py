"""The results of a comparison in files and on screen: tables, JSON, CSV, plots, and a README with the settings."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich import box
from rich.table import Table

from fastdhm import __version__
from fastdhm.compare.arms import Arm, Published
from fastdhm.compare.frontier import plot_frontier
from fastdhm.compare.paper import PEOPLE
from fastdhm.compare.plots import plot_results
from fastdhm.compare.record import CSV_COLUMNS, csv_rows, record
from fastdhm.compare.results import Results
from fastdhm.compare.statistics import Difference, Summary
from fastdhm.compare.words import METRICS, remarks, what_is_counted
from fastdhm.engine.saved.checkpoint import HOW_IT_RUNS
from fastdhm.engine.saved.judged import judged_on
from fastdhm.system.console import Console
from fastdhm.system.files import write_csv, write_text

NOTHING = "-"
CURVES = """![Training and {judged} error over the epochs](curves.png)

Lines are means over the finished seeds, bands are their range. Training error is measured during training, on the
augmented images of the epoch{seen}. An epoch has only whole batches: the images that fill no batch are left out, other
ones each time. The authors' released code makes a smaller batch of them (on CIFAR: 390 steps here, 391 there)."""
SEEN = "; seen-image error, on some of the training images without augmentation: it only says how well they are learnt"
WALLCLOCK = """![Error over training time](wallclock.png)

Training time is the time of the steps in all processes that worked on a run. It includes compiling and loading, but
not validation and the time between processes."""
FRONTIER = """![Error over the work of the training](frontier.png)

Work is the multiply-adds of a run's steps, forward and backward, with the branches that it computes; it depends on no
machine. Validation is not in it. Runs with a teacher, frozen layers, smaller images at first or one branch alone are
left out. Times are of the fastest seed that had its machine to itself, and drawn if all were on one kind of machine."""
SHARED = " Some runs shared their machine with others, which slowed them: these are no times of a run alone."

Grid = list[list[str]]  # rows of text, the header first


def write_results(folder: Path, results: Results) -> None:
    """Write the results of the runs so far: tables, JSON, plots, and a README with all of them."""
    plot_results(folder, results)
    has_frontier = plot_frontier(folder / "frontier.png", results)
    text = json.dumps(record(results), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / "results.json", f"{text}\n")
    write_text(folder / "table.md", tables_markdown(results))
    write_text(folder / "README.md", readme(results, has_frontier))
    write_csv(folder / "table.csv", CSV_COLUMNS, csv_rows(results))


def print_results(console: Console, results: Results) -> None:
    """Print the tables and the remarks to a terminal."""
    for heading, grid in tables(results):
        console.print(heading, style="italic")
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(grid[0]):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in grid[1:]:
            table.add_row(*row)
        console.print(table)
    for line in [what_is_counted(results), *remarks(results)]:
        console.print(line)


def tables(results: Results) -> list[tuple[str, Grid]]:
    """Every table with its heading."""
    laid_out = [("In the paper's layout", paper_table(results))] if results.comparison.table else []
    found = [*laid_out, (results.comparison.title, main_table(results))]
    differences = difference_table(results)
    if len(differences) > 1:
        metrics = results.comparison.metrics
        of = f" of {_short(metrics[0])}" * (len(metrics) == 1)
        found.append((f"Differences{of}, paired by seed", differences))
    return [*found, ("Time of a run", time_table(results))]


def main_table(results: Results) -> Grid:
    """A row for each arm: number of runs, mean ± std of each branch, and the paper's number if there is one."""
    every = [(branch, metric) for branch in results.branches for metric in results.shown_metrics(branch)]
    arms = results.comparison.arms
    columns = [c for c in every if c[0] == "B0" or any(results.summary(arm, *c) for arm in arms)]
    printed = {c for c in columns if any(results.published(arm, *c) for arm in results.comparison.arms)}
    header = [*_group_head(results), "method", "n"]
    for branch, metric in columns:
        name = _short(metric)
        header += [f"{branch} {name}", *([f"paper {branch} {name}"] if (branch, metric) in printed else [])]
    rows = []
    for arm in results.comparison.arms:
        row = [*_group(results, arm), arm.label, _count(results, arm)]
        for column in columns:
            row.append(spread(results.summary(arm, *column)))
            row += [published(results.published(arm, *column), column[1])] if column in printed else []
        rows.append(row)
    return [header, *rows]


def paper_table(results: Results) -> Grid:
    """The table in the paper's layout: each cell has the result, and the paper's number in brackets."""
    places = {(p.row, p.column): (arm, p.branch) for arm in results.comparison.arms for p in arm.places}
    rows, columns = (list(dict.fromkeys(place[axis] for place in places)) for axis in (0, 1))
    grid = [["", *columns]]
    for row in rows:
        cells = []
        for column in columns:
            arm, branch = places.get((row, column), (None, ""))
            cells.append(_paper_cell(results, arm, branch) if arm else "")
        grid.append([row, *cells])
    return grid


def _paper_cell(results: Results, arm: Arm, branch: str) -> str:
    metrics = results.comparison.metrics
    ours = " / ".join(spread(results.summary(arm, branch, metric)) for metric in metrics)
    theirs = [results.published(arm, branch, metric) for metric in metrics]
    return f"{ours} ({' / '.join(map(published, theirs, metrics))})" if all(theirs) else ours


def difference_table(results: Results) -> Grid:
    """A row for each arm, other arm, branch and metric that can be compared."""
    interval = f"{100 * results.confidence:.10g}% interval"
    several = len(results.comparison.metrics) > 1
    head = ["method", "from", "branch", *(["metric"] * several), "pairs", "difference", interval, "p", "needed"]
    return [
        [*_group_head(results), *head],
        *(
            [
                *_group(results, arm),
                arm.label,
                other.label,
                branch,
                *([_short(metric)] * several),
                str(found.n),
                *_interval(found),
            ]
            for arm, other, branch, metric, found in results.differences()
        ),
    ]


def _short(metric: str) -> str:
    return METRICS[metric].removesuffix(", %")


def time_table(results: Results) -> Grid:
    """Minutes of training, their ratio to the reference's, and minutes of validation.

    Runs that shared their machine count only where an arm has no others, and then have no ratio: how much each was
    slowed is not known.
    """
    grid = [[*_group_head(results), "method", "n", "training, min", "over the reference's", "validation, min", "on"]]
    for arm in results.comparison.arms:
        ours = results.train_seconds(arm)
        reference = results.comparison.reference_of(arm.group)
        theirs = results.train_seconds(reference)
        alone = results.alone(arm) and results.alone(reference)
        ratio = f"{ours.mean / theirs.mean:.2f}" if ours and theirs and alone else NOTHING
        times = [spread(_minutes(ours)), ratio, spread(_minutes(results.val_seconds(arm))), _machines(results, arm)]
        grid.append([*_group(results, arm), arm.label, str(ours.n if ours else 0), *times])
    return grid


def _machines(results: Results, arm: Arm) -> str:
    """What an arm's runs were trained on."""
    return " or ".join(sorted({state.machine for state in results.timed(arm)})) or NOTHING


def _minutes(seconds: Summary | None) -> Summary | None:
    if seconds is None:
        return None
    return Summary(seconds.n, seconds.mean / 60, None if seconds.std is None else seconds.std / 60)


def _group_head(results: Results) -> list[str]:
    return ["setting"] if len(results.comparison.groups) > 1 else []


def _group(results: Results, arm: Arm) -> list[str]:
    return [arm.group] if len(results.comparison.groups) > 1 else []


def _count(results: Results, arm: Arm) -> str:
    """How many of the arm's runs are in the numbers: ``3``, ``2 of 3``, ``2 of 3, 1 failed``."""
    done, every, failed = len(results.of(arm, "finished")), len(results.of(arm)), len(results.of(arm, "failed"))
    text = str(done) if done == every else f"{done} of {every}"
    return f"{text}, {failed} failed" if failed else text


def spread(summary: Summary | None) -> str:
    """``27.40 ± 0.26``; one value has no spread."""
    if summary is None:
        return NOTHING
    return f"{summary.mean:.2f}" + (f" ± {summary.std:.2f}" if summary.std is not None else "")


def published(number: Published | None, metric: str) -> str:
    """The paper's number with its decimals: three for errors, one for re-identification."""
    if number is None:
        return NOTHING
    mean, std = number
    places = 1 if metric in PEOPLE else 3
    return f"{mean:.{places}f}" + (f" ± {std:.{places}f}" if std is not None else "")


def _interval(difference: Difference) -> list[str]:
    mean, low, high = difference.mean, difference.low, difference.high
    if low is None or high is None or difference.p_value is None:
        why = "none of one pair" if difference.n == 1 else "none, equal in all pairs"
        return [f"{mean:+.2f}", why, NOTHING, NOTHING]
    places = next((n for n in range(2, 9) if f"{low:+.{n}f}" != f"{high:+.{n}f}"), 9)
    p_value = f"{difference.p_value:.3f}" if difference.p_value >= 0.001 else "< 0.001"
    needed = f"{difference.n_needed:,}" if difference.n_needed else "> a million" if low <= 0 <= high else NOTHING
    return [f"{mean:+.{places}f}", f"{low:+.{places}f} to {high:+.{places}f}", p_value, needed]


def tables_markdown(results: Results) -> str:
    """The tables, and the remarks that must be copied with them."""
    parts = [f"## {escaped(heading)}\n\n{markdown(grid)}" for heading, grid in tables(results)]
    words = "\n\n".join(map(escaped, [what_is_counted(results), *remarks(results)]))
    return "\n\n".join(parts) + f"\n\n{words}\n"


def readme(results: Results, has_frontier: bool) -> str:
    """The README: title, command, tables, plots, and the settings of the runs."""
    comparison = results.comparison
    common, own = settings(comparison.arms)
    seeds = ", ".join(map(str, comparison.seeds))
    parts = [f"# {escaped(comparison.title)}"]
    if comparison.command:
        by = " and by ".join(comparison.made_by) or f"fastdhm {__version__} with torch {torch.__version__}"
        parts.append(f"Made by {by}:\n\n    {comparison.command}")
    parts.append(tables_markdown(results).rstrip())
    if any(state.status == "finished" for state in results.states):
        kinds = dict.fromkeys(judged_on(arm.config) for arm in comparison.arms)
        parts.append(CURVES.format(judged=" or ".join(kinds), seen=SEEN * ("seen-image" in kinds)))
    if any(results.train_seconds(arm) for arm in comparison.arms):
        parts.append(WALLCLOCK + SHARED * (not all(map(results.alone, comparison.arms))))
    if has_frontier:
        parts.append(FRONTIER)
    parts.append(f"## Settings\n\nSeeds {seeds}. Every run:\n\n```yaml\n{_yaml(common)}```")
    parts += ["In addition:\n\n" + "\n".join(f"- {name}: {_code(_flow(values))}" for name, values in own.items())]
    parts.append(
        "Each run has a folder in `runs/` with its whole config, its log and its network. `results.json` has all "
        "numbers here and those of each run. `table.csv` has the tables."
    )
    return "\n\n".join(parts) + "\n"


def settings(arms: Sequence[Arm]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The values that the configs of all arms share, and the other values of each."""
    configs = {arm.name: _learnt(arm) for arm in arms}
    first = next(iter(configs.values()))
    common = {name: value for name, value in first.items() if all(c[name] == value for c in configs.values())}
    own = {
        arm.name: {name: value for name, value in configs[arm.name].items() if name not in common} for arm in arms
    }  # fmt: skip
    return common, own


def _learnt(arm: Arm) -> dict[str, Any]:
    """The values that decide what a run learns."""
    left_out = ("run_dir", "seed", *HOW_IT_RUNS)
    values = {name: value for name, value in dataclasses.asdict(arm.config).items() if name not in left_out}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _code(text: str) -> str:
    """Text as code in Markdown, with enough backticks around it."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)


def _flow(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=True, width=10**6).strip()


def markdown(grid: Grid) -> str:
    """A grid as a Markdown table; the first column is aligned left, the others right."""
    lines = [[escaped(cell) for cell in row] for row in grid]
    rule = [":--", *["--:"] * (len(grid[0]) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line; underscores inside a word need no escape."""
    return re.sub(r"[\\`*|<\[\]~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))
