"""The results of a comparison as plain values, for JSON and CSV."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from fastdhm.compare.arms import Arm
from fastdhm.compare.results import Results
from fastdhm.compare.statistics import Summary
from fastdhm.compare.words import remarks, what_is_counted

CSV_COLUMNS = (
    "group", "arm", "label", "branch", "metric", "n", "mean", "std", "paper_mean", "paper_std",
    "reference", "pairs", "difference", "low", "high", "p_value", "pairs_needed",
)  # fmt: skip


def csv_rows(results: Results) -> Iterable[dict[str, Any]]:
    """A row for each arm, branch and metric, with its difference from the reference."""
    for entry in record(results)["summary"]:
        difference = entry.pop("difference") or {}
        paper_mean, paper_std = entry.pop("paper") or (None, None)
        names = {"n": "pairs", "mean": "difference", "n_needed": "pairs_needed"}
        renamed = {names.get(name, name): value for name, value in difference.items()}
        row = {**entry, "paper_mean": paper_mean, "paper_std": paper_std, **renamed}
        yield {name: _no_formula(value) for name, value in row.items()}


def _no_formula(value: Any) -> Any:
    """Text with a quote in front if a spreadsheet would take it as a formula, such as ``=2+3``."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def record(results: Results) -> dict[str, Any]:
    """All of the results."""
    comparison = results.comparison
    whole = {
        "title": comparison.title,
        "table": comparison.table,
        "notes": list(comparison.notes),
        "counted": what_is_counted(results),
        "remarks": remarks(results),
        "complete": results.complete,
        "score": results.score,
        "confidence": results.confidence,
        "seeds": list(comparison.seeds),
        "metrics": list(comparison.metrics),
        "summary": [
            _summary(results, arm, branch, metric, summary)
            for arm in comparison.arms
            for branch in results.branches
            for metric in results.shown_metrics(branch)
            if (summary := results.summary(arm, branch, metric))
        ],
        "differences": [
            {"arm": arm.name, "reference": other.name, "branch": branch, "metric": metric, **dataclasses.asdict(found)}
            for arm, other, branch, metric, found in results.differences()
        ],
        "runs": [
            {
                "name": state.name,
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
                "data": state.data,
                "failure": state.failure,
            }
            for state in results.states
        ],
    }
    return _finite(whole)


def _finite(value: Any) -> Any:
    """``value`` with null for NaN and infinity, which JSON lacks, such as the cross-entropy of a diverged network."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(results: Results, arm: Arm, branch: str, metric: str, summary: Summary) -> dict[str, Any]:
    reference = results.comparison.reference_of(arm.group, branch)
    difference = results.difference(arm, reference, branch, metric)
    return {
        "group": arm.group,
        "arm": arm.name,
        "label": arm.label,
        "branch": branch,
        "metric": metric,
        **dataclasses.asdict(summary),
        "paper": results.published(arm, branch, metric),
        "reference": reference.name,
        "difference": difference and dataclasses.asdict(difference),
    }
