"""The results of a comparison on paper and screen: tables, JSON, CSV, and a README that says how they came about."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich import box
from rich.table import Table

from fastdhm import __version__
from fastdhm.compare.arms import Arm, Published
from fastdhm.compare.plots import plot_results
from fastdhm.compare.results import Results
from fastdhm.compare.statistics import Difference, Summary
from fastdhm.console import Console, paste
from fastdhm.engine.checkpoint import RESUMABLE
from fastdhm.files import write_csv, write_text

METRICS = {
    "top1_error": "top-1 error, %",
    "top5_error": "top-5 error, %",
    "accuracy": "top-1 accuracy, %",
    "map_percent": "mAP, %",
    "rank1_percent": "rank-1, %",
}
NOTHING = "-"
CURVES = """![Training and validation error over the epochs](curves.png)

Lines are means over the finished seeds, bands their range. Training error is that of an epoch's own, augmented images
while they are learnt."""
WALLCLOCK = """![Validation error over training time](wallclock.png)

Training time is that of the steps, over all processes that worked on a run, compiling and loading included, validation
and the time between processes not."""
CSV_COLUMNS = (
    "group", "arm", "label", "branch", "metric", "n", "mean", "std", "paper_mean", "paper_std",
    "reference", "pairs", "difference", "low", "high", "p_value",
)  # fmt: skip

Grid = list[list[str]]  # rows of text, the header first


def write_results(folder: Path, results: Results) -> None:
    """Write all that is said of the runs so far: tables, JSON, pictures, and a README of them."""
    plot_results(folder, results)
    write_text(folder / "results.json", json.dumps(record(results), indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "table.md", tables_markdown(results))
    write_text(folder / "README.md", readme(results))
    write_csv(folder / "table.csv", CSV_COLUMNS, csv_rows(results))


def print_results(console: Console, results: Results) -> None:
    """The tables for a person at a terminal."""
    for heading, grid in tables(results):
        table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(grid[0]):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in grid[1:]:
            table.add_row(*row)
        console.print(table)
    for line in [what_is_counted(results), *remarks(results)]:
        console.print(line)


def tables(results: Results) -> list[tuple[str, Grid]]:
    """Every table with its heading."""
    laid_out = [("As the paper lays it out", paper_table(results))] if results.comparison.table else []
    found = [*laid_out, (results.comparison.title, main_table(results))]
    differences = difference_table(results)
    if len(differences) > 1:
        found.append((f"Difference from {_reference(results)}, paired by seed", differences))
    return [*found, ("Time of a run", time_table(results))]


def main_table(results: Results) -> Grid:
    """A row for each arm: how many runs, mean ± std of each branch, and beside it the paper's where it has one."""
    columns = [(branch, metric) for branch in results.branches for metric in results.shown_metrics(branch)]
    printed = {c for c in columns if any(results.published(arm, *c) for arm in results.comparison.arms)}
    header = [*_group_head(results), "method", "n"]
    for branch, metric in columns:
        name = METRICS[metric].removesuffix(", %")
        header += [f"{branch} {name}", *([f"paper {branch} {name}"] if (branch, metric) in printed else [])]
    rows = []
    for arm in results.comparison.arms:
        row = [*_group(results, arm), arm.label, _count(results, arm)]
        for column in columns:
            row.append(spread(results.summary(arm, *column)))
            row += [published(results.published(arm, *column))] if column in printed else []
        rows.append(row)
    return [header, *rows]


def paper_table(results: Results) -> Grid:
    """The table as the paper lays it out: each cell ours, and in brackets the paper's."""
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
    return f"{ours} ({' / '.join(map(published, theirs))})" if all(theirs) else ours


def difference_table(results: Results) -> Grid:
    """A row for each arm, branch and metric that the reference of the group has too."""
    grid = [
        [
            *_group_head(results),
            "method",
            "branch",
            "metric",
            "pairs",
            "difference",
            f"{100 * results.confidence:g}% interval",
            "p",
        ]
    ]
    for arm in results.comparison.arms:
        for branch in results.branches:
            for metric in results.shown_metrics(branch):
                found = results.difference(arm, branch, metric)
                if found:
                    name = METRICS[metric].removesuffix(", %")
                    grid.append([*_group(results, arm), arm.label, branch, name, str(found.n), *_interval(found)])
    return grid


def time_table(results: Results) -> Grid:
    """Minutes of training, over the reference's, and of validation."""
    grid = [[*_group_head(results), "method", "n", "training, min", "over the reference's", "validation, min", "on"]]
    for arm in results.comparison.arms:
        ours = results.train_seconds(arm)
        theirs = results.train_seconds(results.comparison.reference_of(arm.group))
        ratio = f"{ours.mean / theirs.mean:.2f}" if ours and theirs else NOTHING
        times = [spread(_minutes(ours)), ratio, spread(_minutes(results.val_seconds(arm))), _machines(results, arm)]
        grid.append([*_group(results, arm), arm.label, str(ours.n if ours else 0), *times])
    return grid


def _machines(results: Results, arm: Arm) -> str:
    """What an arm's runs were trained on."""
    return " or ".join(sorted({state.machine for state in results.of(arm, "finished")})) or NOTHING


def _reference(results: Results) -> str:
    """What differences and ratios are taken from, in every group."""
    pairs = [(group, branch) for group in results.comparison.groups for branch in results.branches]
    return " or ".join(dict.fromkeys(results.comparison.reference_of(*pair).label for pair in pairs))


def _minutes(seconds: Summary | None) -> Summary | None:
    if seconds is None:
        return None
    return Summary(seconds.n, seconds.mean / 60, None if seconds.std is None else seconds.std / 60)


def _group_head(results: Results) -> list[str]:
    return ["setting"] if len(results.comparison.groups) > 1 else []


def _group(results: Results, arm: Arm) -> list[str]:
    return [arm.group] if len(results.comparison.groups) > 1 else []


def _count(results: Results, arm: Arm) -> str:
    """How many of the arm's runs the numbers are of: ``3``, ``2 of 3``, ``2 of 3, 1 failed``."""
    done, every, failed = len(results.of(arm, "finished")), len(results.of(arm)), len(results.of(arm, "failed"))
    text = str(done) if done == every else f"{done} of {every}"
    return f"{text}, {failed} failed" if failed else text


def spread(summary: Summary | None) -> str:
    """``27.40 ± 0.26``; one value has no spread."""
    if summary is None:
        return NOTHING
    return f"{summary.mean:.2f}" + (f" ± {summary.std:.2f}" if summary.std is not None else "")


def published(number: Published | None) -> str:
    """The paper's number as it printed it."""
    if number is None:
        return NOTHING
    mean, std = number
    return f"{mean:.3f}".removesuffix("00") + (f" ± {std:.3f}" if std is not None else "")


def _interval(difference: Difference) -> list[str]:
    if difference.low is None:
        why = "none of one pair" if difference.n == 1 else "none, all are equal"
        return [f"{difference.mean:+.2f}", why, NOTHING]
    p_value = f"{difference.p_value:.3f}" if difference.p_value >= 0.001 else "< 0.001"
    return [f"{difference.mean:+.2f}", f"{difference.low:+.2f} to {difference.high:+.2f}", p_value]


def what_is_counted(results: Results) -> str:
    """What the numbers are, in a sentence."""
    metrics = " and ".join(METRICS[metric] for metric in results.comparison.metrics)
    at = {
        "last": "of each run's last epoch",
        "best": f"of each run's epoch with the lowest validation error of {_judged(results)}, which flatters it, as "
        "the epoch is chosen by the images that it is judged on",
    }[results.score]
    if "map_percent" in results.comparison.metrics:
        at = "of the stripped network at the end of each run"
    return (
        f"{metrics}, {at}; mean ± sample standard deviation over the n seeds that are finished. Intervals and "
        "p-values: Student's t on the differences by seed, each on its own, not corrected for their number."
    )


def _judged(results: Results) -> str:
    """Whose error picks the best epoch: B0's, but where a branch is trained alone that one's."""
    alone = [arm.config.only_branch or "B0" for arm in results.comparison.arms]
    others = sorted({name for name in alone if name != "B0"})
    if "B0" not in alone:
        return others[0] if len(others) == 1 else f"the branch that is trained alone ({', '.join(others)})"
    return "B0" + f", or of the branch that is trained alone ({', '.join(others)})" * bool(others)


def _without_reference(results: Results) -> Iterable[str]:
    """Which side branches stand in the table and have no difference, as the reference does not have them."""
    comparison = results.comparison
    unmatched: dict[tuple[str, str], list[str]] = {}
    for group, branch in itertools.product(comparison.groups, results.branches):
        metric = results.shown_metrics(branch)[0]
        reference = comparison.reference_of(group, branch)
        having = [arm for arm in comparison.members(group) if results.values(arm, branch, metric)]
        if len(having) > 1 and reference not in having:
            other = next((arm for arm in having if arm.config.method == "dsl"), having[0])
            name = other.config.method if len(comparison.groups) > 1 else other.label
            unmatched.setdefault((reference.label, name), []).append(branch)
    for (reference, other), branches in unmatched.items():
        names = ", ".join(dict.fromkeys(branches))
        yield (
            f"{names}: no difference from {reference}, which has no such branch. `fastdhm compare --resume FOLDER "
            f"--report-only --reference {paste(other)}` shows theirs from {other}."
        )


def remarks(results: Results) -> list[str]:
    """What has to be known beside the tables: what is not the paper's, what is missing, what failed."""
    lines = [f"Note: {note}." for note in results.comparison.notes]
    lines += _without_reference(results)
    left = sum(state.status in ("missing", "begun") for state in results.states)
    if left:
        lines.append(f"Not complete: {left} of {len(results.states)} runs are not finished.")
    names = {arm.name: arm.label for arm in results.comparison.arms}
    lines += [f"Failed: {names[state.arm]}, seed {state.seed}: {state.failure}." for state in results.failed]
    return lines


def tables_markdown(results: Results) -> str:
    """The tables and what must not be left out when they are copied."""
    parts = [f"## {heading}\n\n{markdown(grid)}" for heading, grid in tables(results)]
    words = "\n\n".join([what_is_counted(results), *remarks(results)])
    return "\n\n".join(parts) + f"\n\n{words}\n"


def readme(results: Results) -> str:
    """How the numbers came about: title, tables, pictures, and the settings of the runs."""
    comparison = results.comparison
    common, own = settings(comparison.arms)
    seeds = ", ".join(map(str, comparison.seeds))
    parts = [f"# {comparison.title}"]
    if comparison.command:
        parts.append(f"Made by fastdhm {__version__} (torch {torch.__version__}):\n\n    {comparison.command}")
    parts.append(tables_markdown(results).rstrip())
    if any(state.status == "finished" for state in results.states):
        parts.append(CURVES)
    if any(results.train_seconds(arm) for arm in comparison.arms):
        parts.append(WALLCLOCK)
    parts.append(f"## Settings\n\nSeeds {seeds}. Every run:\n\n```yaml\n{_yaml(common)}```")
    parts += ["Beside that:\n\n" + "\n".join(f"- {label}: `{_flow(values)}`" for label, values in own.items())]
    parts.append(
        "Each run's own folder under `runs/` has its whole config, its log and its network; `results.json` has every "
        "number here and those of each run, `table.csv` the tables."
    )
    return "\n\n".join(parts) + "\n"


def settings(arms: Sequence[Arm]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What the configs of all arms have in common, and what each has of its own."""
    configs = {arm.name: _learnt(arm) for arm in arms}
    first = next(iter(configs.values()))
    common = {name: value for name, value in first.items() if all(c[name] == value for c in configs.values())}
    own = {
        arm.name: {name: value for name, value in configs[arm.name].items() if name not in common} for arm in arms
    }  # fmt: skip
    return common, own


def _learnt(arm: Arm) -> dict[str, Any]:
    """The values that decide what a run learns."""
    left_out = ("run_dir", "seed", *(name for name in RESUMABLE if name != "max_steps"))
    values = {name: value for name, value in dataclasses.asdict(arm.config).items() if name not in left_out}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)


def _flow(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=True, width=10**6).strip()


def markdown(grid: Grid) -> str:
    """A grid as a table; the first column to the left, numbers to the right."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in grid]
    rule = [":--", *["--:"] * (len(grid[0]) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def csv_rows(results: Results) -> Iterable[dict[str, Any]]:
    """A row for each arm, branch and metric."""
    for entry in record(results)["summary"]:
        difference = entry.pop("difference") or {}
        paper_mean, paper_std = entry.pop("paper") or (None, None)
        names = {"n": "pairs", "mean": "difference"}
        renamed = {names.get(name, name): value for name, value in difference.items()}
        yield {**entry, "paper_mean": paper_mean, "paper_std": paper_std, **renamed}


def record(results: Results) -> dict[str, Any]:
    """All of the results as plain values."""
    comparison = results.comparison
    return {
        "title": comparison.title,
        "table": comparison.table,
        "notes": list(comparison.notes),
        "complete": results.complete,
        "score": results.score,
        "confidence": results.confidence,
        "seeds": list(comparison.seeds),
        "metrics": list(comparison.metrics),
        "summary": [
            _summary_record(results, arm, branch, metric)
            for arm in comparison.arms
            for branch in results.branches
            for metric in results.shown_metrics(branch)
            if results.summary(arm, branch, metric)
        ],
        "runs": [
            {
                "name": f"{state.arm}-seed{state.seed}",
                "arm": state.arm,
                "seed": state.seed,
                "status": state.status,
                "epochs": state.epochs,
                "train_seconds": state.train_seconds,
                "val_seconds": state.val_seconds,
                "last": state.scores("last"),
                "best": state.scores("best"),
                "best_epoch": state.best_epoch(),
                "machine": state.machine,
                "failure": state.failure,
            }
            for state in results.states
        ],
    }


def _summary_record(results: Results, arm: Arm, branch: str, metric: str) -> dict[str, Any]:
    difference = results.difference(arm, branch, metric)
    return {
        "group": arm.group,
        "arm": arm.name,
        "label": arm.label,
        "branch": branch,
        "metric": metric,
        **dataclasses.asdict(results.summary(arm, branch, metric)),
        "paper": results.published(arm, branch, metric),
        "reference": results.comparison.reference_of(arm.group, branch).name,
        "difference": difference and dataclasses.asdict(difference),
    }
