"""The state of a run of a comparison, read from its folder. Nothing here computes on a device."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastdhm.compare.arms import Arm, unlike
from fastdhm.config import TrainConfig
from fastdhm.data.sources.identity import Identity
from fastdhm.engine.saved.checkpoint import RESUMABLE, learnt_from, moved, read_config
from fastdhm.engine.saved.judged import best_of, validations
from fastdhm.engine.saved.names import CONFIG, FAILURE, NETWORK
from fastdhm.engine.saved.owed import owed
from fastdhm.engine.saved.record import read_log
from fastdhm.errors import UserError
from fastdhm.system.files import write_text
from fastdhm.system.paths import shown

BESIDE = "beside.json"  # what else ran on its machine: its times are then not those of a run alone
COMPANY = "FASTDHM_COMPANY"  # the variable by which a command tells that to the runs that it starts
Status = Literal["missing", "begun", "finished", "failed"]
# a score -> what the log calls it
LOGGED = {
    "top1_error": "val_error",
    "top5_error": "val_top5_error",
    "cross_entropy": "val_ce",
    "train_error": "train_error",
}
PEOPLE = ("map_percent", "rank1_percent", "rank5_percent")  # of the stripped network on a re-identification set


@dataclass(frozen=True)
class RunState:
    """A run: its status, and its log."""

    arm: str
    seed: int
    status: Status
    rows: tuple[dict[str, Any], ...] = ()
    epochs: float = 0.0
    """Complete epochs in the log."""
    failure: str | None = None
    machine: str = ""
    """Device and precision of its last training, and what it shared the machine with."""
    company: str = ""
    """``up to 4 at once`` where it ran beside others, so that its times are not those of a run alone."""
    data: Identity = field(default_factory=dict)
    """The images that it was trained and evaluated on, see ``data.sources.identity``; only for a finished run."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.arm}-seed{self.seed}"

    @property
    def epoch_rows(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["kind"] == "epoch"]

    @property
    def validations(self) -> list[dict[str, Any]]:
        """The epochs with validation, at the final image size: a progressive run begins with smaller images."""
        return validations(self.rows)

    @property
    def main_branch(self) -> str:
        """B0, or the branch that was trained alone."""
        names = {key.partition("/")[2] for row in self.validations[-1:] for key in row if key.startswith("val_error/")}
        return min(names, default="B0")

    @property
    def best(self) -> dict[str, Any]:
        """The validated epoch with the main branch's lowest error."""
        return best_of(self.validations, self.main_branch)

    @property
    def train_seconds(self) -> float | None:
        """Time in training; ``None`` for an old log without it."""
        return next((row.get("train_seconds") for row in reversed(self.epoch_rows)), None)

    @property
    def val_seconds(self) -> float:
        """Time in validation."""
        return sum(row.get("val_seconds", 0.0) for row in self.epoch_rows)

    def scores(self, which: Literal["last", "best"]) -> dict[str, dict[str, float]]:
        """Branch -> score -> value, from the last validated epoch or from the one with B0's lowest error."""
        if not self.validations:
            return {}
        row = self.validations[-1] if which == "last" else self.best
        names = sorted(key.partition("/")[2] for key in row if key.startswith("val_error/"))
        scores = {
            name: {score: row[f"{key}/{name}"] for score, key in LOGGED.items() if f"{key}/{name}" in row}
            for name in names
        }
        for values in scores.values():
            values["accuracy"] = 100 - values["top1_error"]
        ranked = [row for row in self.rows if row["kind"] == "reid" and PEOPLE[0] in row]
        if ranked:
            scores[self.main_branch] |= {score: ranked[-1][score] for score in PEOPLE}
        return scores

    def best_epoch(self) -> float | None:
        """The epoch with B0's lowest error."""
        return self.best["epoch"] if self.validations else None


def read_run(folder: Path, arm: Arm, seed: int, expected: TrainConfig) -> RunState:
    """The state of the run in ``folder``.

    Raises:
        ValueError: it holds a run whose config differs from ``expected`` in a value that decides what is learnt.
    """
    if not (folder / CONFIG).exists():
        return RunState(arm.name, seed, "missing")
    config = read_config(folder)
    other = unlike(config, expected, free=(*RESUMABLE, *moved(config, expected)))
    if other:
        raise UserError(
            f"{shown(folder)} holds a run with other settings ({', '.join(other)}): move it away, or choose another "
            "folder for the comparison"
        )
    rows = tuple(read_log(folder))
    epochs = [row for row in rows if row["kind"] == "epoch"]
    at = epochs[-1] if epochs else {"epoch": 0.0, "step": 0}
    if (folder / FAILURE).exists():
        try:
            failure = str(json.loads((folder / FAILURE).read_text("utf-8"))["message"])
        except (ValueError, TypeError, KeyError):
            failure = f"its {FAILURE} cannot be read"
        return RunState(arm.name, seed, "failed", rows, at["epoch"], failure)
    if at["step"] > (expected.max_steps or 1 << 62):
        raise UserError(
            f"{shown(folder)} holds a run of {at['step']:,} steps, more than max_steps ({expected.max_steps:,})"
        )
    company = _company(folder)
    machine = ", ".join([config.device, config.precision, *([company] * bool(company))])
    data = None if owed(folder, expected, rows) else _learnt_from(folder / NETWORK)
    status: Status = "begun" if data is None else "finished"
    return RunState(
        arm.name, seed, status, rows, at["epoch"], machine=machine, company=company, data=data or {}
    )  # fmt: skip


def _learnt_from(network: Path) -> Identity | None:
    """The images that a network was trained on; ``None`` if its file is damaged: it must then be written again."""
    try:
        return learnt_from(network)
    except UserError:
        return None


def record_failure(folder: Path, message: str) -> None:
    """Record in a run's folder that it cannot be finished, and why."""
    write_text(folder / FAILURE, json.dumps({"message": message}) + "\n")


def record_company(folder: Path, company: str) -> None:
    """Record in a run's folder beside what else it ran, if it did."""
    if company and folder.is_dir():
        write_text(folder / BESIDE, json.dumps({"company": company}) + "\n")


def _company(folder: Path) -> str:
    try:
        return str(json.loads((folder / BESIDE).read_text("utf-8"))["company"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""
