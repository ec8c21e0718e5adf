"""The page of a comparison, from its ``results.json`` and the logs of its runs."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastdhm.engine.saved.judged import in_epochs, validations
from fastdhm.engine.saved.record import read_log
from fastdhm.errors import UserError
from fastdhm.page.html import figures, note, page, table
from fastdhm.page.svg import Points, curves
from fastdhm.system.paths import printable, shown

RESULTS = "results.json"


def comparison_page(folder: Path) -> str:
    """The page of the comparison in ``folder``, with the runs so far.

    Raises:
        ValueError: its results are not there, or cannot be read.
    """
    path = folder / RESULTS
    try:
        results = json.loads(path.read_text("utf-8"))
        sections = {
            "Results": table(*_summary(results)) + "".join(map(note, results.get("remarks", ()))),
            "Differences, paired by seed": table(*_differences(results)),
            "Curves": figures(*_curves(folder, results)),
            "Runs": table(*_runs(results)),
        }
        done = sum(run["status"] == "finished" for run in results["runs"])
        about = [f"{printable(folder)}: {done} of {len(results['runs'])} runs finished", results.get("counted", "")]
        return page(results["title"], [line for line in about if line], sections)
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read ({error.strerror}): `fastdhm compare` writes it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{shown(path)} does not hold the results of a comparison: write it anew, "
                        "by `fastdhm compare --resume DIR --report-only`") from error  # fmt: skip


Grid = tuple[list[str], list[list[str]]]


def _summary(results: dict[str, Any]) -> Grid:
    head = ["method", "branch", "metric", "n", "mean", "std"]
    names = ("mean", "std")
    return head, [
        [row["label"], row["branch"], _words(row["metric"]), str(row["n"]), *(_cell(row[name]) for name in names)]
        for row in results["summary"]
    ]


def _differences(results: dict[str, Any]) -> Grid:
    head = ["method", "from", "branch", "metric", "pairs", "difference", "low", "high", "p", "needed"]
    return head, [
        [row["arm"], row["reference"], row["branch"], _words(row["metric"]), str(row["n"]),
         *(_cell(row[name], "+") for name in ("mean", "low", "high")), _cell(row["p_value"], places=3),
         _cell(row.get("n_needed"), places=0)]
        for row in results.get("differences", ())
    ]  # fmt: skip


def _runs(results: dict[str, Any]) -> Grid:
    head = ["run", "state", "epochs", "B0 top-1 %", "training, min"]
    return head, [
        [run["name"], run["status"] + (f": {run['failure']}" if run["failure"] else ""), in_epochs(run["epochs"]),
         _cell(run["last"].get("B0", {}).get("top1_error")), _cell(run["train_seconds"] and run["train_seconds"] / 60)]
        for run in results["runs"]
    ]  # fmt: skip


def _curves(folder: Path, results: dict[str, Any]) -> Iterable[str]:
    """The validation error of each branch over the epochs: a curve per method, the mean of its seeds so far."""
    values: dict[str, dict[str, dict[float, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for run in results["runs"]:
        for row in validations(read_log(folder / "runs" / run["name"])):
            for key in row:
                if key.startswith("val_error/"):
                    values[key.partition("/")[2]][run["arm"]][row["epoch"]].append(row[key])
    for branch, arms in sorted(values.items()):
        means: dict[str, Points] = {
            arm: [(epoch, sum(found) / len(found)) for epoch, found in sorted(epochs.items())]
            for arm, epochs in arms.items()
        }
        yield curves(means, "epoch", f"top-1 error of {branch}, %")


def _cell(value: float | None, sign: str = "", places: int = 2) -> str:
    return "-" if value is None else f"{value:{sign}.{places}f}"


def _words(metric: str) -> str:
    return metric.replace("_", " ")
