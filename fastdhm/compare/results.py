"""What the runs of a comparison say together: values by arm, branch and seed, their spread, their differences."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from fastdhm.compare.arms import Arm, Published
from fastdhm.compare.plan import Comparison
from fastdhm.compare.runs import RunState
from fastdhm.compare.statistics import Difference, Summary, paired_difference, summarize

Scores = dict[str, dict[str, float]]  # branch -> score -> value


@dataclass(frozen=True)
class Results:
    """The runs of a comparison so far. Only finished runs count, and a failed one is told."""

    comparison: Comparison
    states: tuple[RunState, ...]
    score: Literal["last", "best"]
    """Of each run the last epoch, or that with the lowest validation error of B0 (a branch alone: its own)."""
    confidence: float

    def of(self, arm: Arm, *statuses: str) -> list[RunState]:
        """An arm's runs, those in one of ``statuses`` if any are named."""
        return [s for s in self.states if s.arm == arm.name and (not statuses or s.status in statuses)]

    @property
    def failed(self) -> list[RunState]:
        return [state for state in self.states if state.status == "failed"]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train."""
        return all(state.status in ("finished", "failed") for state in self.states)

    @cached_property
    def _scores(self) -> dict[tuple[str, int], Scores]:
        done = [state for state in self.states if state.status == "finished"]
        return {(state.arm, state.seed): state.scores(self.score) for state in done}

    @property
    def branches(self) -> list[str]:
        """Every branch that a finished run has a score of."""
        return sorted({branch for scores in self._scores.values() for branch in scores}) or ["B0"]

    def values(self, arm: Arm, branch: str, metric: str) -> dict[int, float]:
        """Seed -> value of each finished run that has it."""
        found = {
            seed: scores.get(branch, {}).get(metric) for (n, seed), scores in self._scores.items() if n == arm.name
        }
        return {seed: value for seed, value in found.items() if value is not None}

    def summary(self, arm: Arm, branch: str, metric: str) -> Summary | None:
        """Mean and spread over the seeds."""
        return summarize(list(self.values(arm, branch, metric).values()))

    def difference(self, arm: Arm, branch: str, metric: str) -> Difference | None:
        """An arm minus the reference of its group, paired by seed; ``None`` for the reference itself."""
        reference = self.comparison.reference_of(arm.group, branch)
        if arm.name == reference.name:
            return None
        ours, theirs = (self.values(one, branch, metric) for one in (arm, reference))
        return paired_difference(ours, theirs, self.confidence)

    def published(self, arm: Arm, branch: str, metric: str) -> Published | None:
        """What the paper has."""
        numbers = arm.paper.get(branch, ())
        place = self.comparison.metrics.index(metric)
        return numbers[place] if place < len(numbers) else None

    def train_seconds(self, arm: Arm) -> Summary | None:
        """Training time of a run, without validation."""
        return summarize([s.train_seconds for s in self.of(arm, "finished") if s.train_seconds is not None])

    def val_seconds(self, arm: Arm) -> Summary | None:
        """Time in validation."""
        return summarize([state.val_seconds for state in self.of(arm, "finished")])

    def shown_metrics(self, branch: str) -> tuple[str, ...]:
        """B0 is shown in all metrics, a side branch in the first."""
        return self.comparison.metrics if branch == "B0" else self.comparison.metrics[:1]
