"""``fastdhm eval --early-exit``: what is saved if the cheapest branch answers where it is sure.

Legend: T thresholds.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn

from fastdhm import models
from fastdhm.engine import distributed
from fastdhm.engine.build import Trained
from fastdhm.engine.evaluate import Errors
from fastdhm.engine.saved.names import EARLY_EXIT
from fastdhm.engine.saved.record import to_host
from fastdhm.errors import UserError, unknown
from fastdhm.models.cost import short
from fastdhm.system.console import Console
from fastdhm.system.files import write_text

SWEEP = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # tried beside the threshold that is asked for


@dataclass(frozen=True)
class EarlyExit:
    """A cascade: images leave at ``first`` where it is sure enough, and go on to ``last`` elsewhere."""

    model: models.BranchedModel
    first: str
    last: str
    threshold: float
    leaves_macs: int
    """Multiply-adds of an image that leaves."""
    stays_macs: int
    """Of one that goes on: the part of the trunk that both need is computed once."""
    last_macs: int
    """Of one that ``last`` alone answers."""

    @classmethod
    def of(cls, trained: Trained, threshold: float, last: str | None, path: Path) -> "EarlyExit":
        """The cascade of what was loaded from ``path``, whose first branch has the fewest multiply-adds.

        Raises:
            ValueError: a threshold that is no probability, one network alone, or no such branch.
        """
        if not 0 <= threshold <= 1:
            raise UserError(f"--early-exit {threshold:g}: the threshold is a probability, from 0 to 1")
        model, config = trained.networks[0], trained.config
        if not isinstance(model, models.BranchedModel) or not model.branches:
            raise UserError(f"--early-exit: {path} holds one network alone; it needs a checkpoint with side branches")
        names, last = model.branch_names, last or model.main
        if last not in names:
            raise unknown("branch", last, names)
        about = config.arch, len(trained.classes), config.image_size
        alone = {name: cost.macs for name, cost in models.costs_alone(*about, names).items()}
        added = models.inventory(*about, model.branches).branches
        first = min((name for name in reversed(names) if name != last), key=alone.__getitem__)
        if alone[first] > alone[last]:
            raise UserError(f"--early-exit: {last} is the cheapest branch already: name another one by --branch")
        own = {name: 0 if name == model.main else added[name].macs for name in (first, last)}
        trunk = max(alone[name] - own[name] for name in (first, last))
        return cls(model, first, last, threshold, alone[first], trunk + sum(own.values()), alone[last])

    def judge(self, errors_of: Callable[[nn.Module], Errors]) -> dict[str, dict[str, float | None]]:
        """For each threshold: the share of images that leave, the errors, and the mean of the multiply-adds."""
        thresholds = sorted({*SWEEP, self.threshold})
        cascade = models.Cascade(self.model, self.first, self.last, thresholds)
        errors = errors_of(cascade)
        distributed.sum_(cascade.left_T)
        found: dict[str, dict[str, float | None]] = {}
        for t, left in enumerate(to_host(cascade.left_T / errors.images)):
            found[f"{thresholds[t]:g}"] = {
                "left": left,
                "top1_error": errors.top1_M[t],
                "top5_error": errors.top5_M[t],
                "multiply_adds": left * self.leaves_macs + (1 - left) * self.stays_macs,
            }
        return found

    def keep(
        self, found: dict[str, dict[str, float | None]], alone: dict[str, Any], run_dir: Path, about: dict[str, Any]
    ) -> None:
        """Leave what :meth:`judge` has found in ``run_dir``, for its page; ``alone`` has the errors of the branches.

        ``about`` says after which ``step``, and on which ``images``.
        """
        macs = {self.first: self.leaves_macs, self.last: self.last_macs}
        values = {
            "first": self.first, "last": self.last, "last_macs": self.last_macs, **about,
            "alone": {name: [macs[name], alone[name]["top1_error"]] for name in macs}, "judged": found,
        }  # fmt: skip
        write_text(run_dir / EARLY_EXIT, json.dumps(values))

    def show(self, found: dict[str, dict[str, float | None]], console: Console) -> None:
        """Print what :meth:`judge` has found; the threshold that was asked for stands out."""
        console.result(
            f"{self.first} answers where its probability reaches the threshold, else {self.last}", style="italic"
        )
        table = Table()
        for column in ("threshold", f"leave at {self.first} %", "top-1 %", "multiply-adds", f"of {self.last}'s %"):
            table.add_column(column, justify="right")
        for threshold, row in found.items():
            left, error, macs = (row[name] or 0.0 for name in ("left", "top1_error", "multiply_adds"))
            cells = f"{100 * left:.2f}", f"{error:.4f}", short(round(macs)), f"{100 * macs / self.last_macs:.1f}"
            table.add_row(threshold, *cells, style="bold" if threshold == f"{self.threshold:g}" else "")
        console.result(table)
