"""The results of a comparison: values by arm, branch and seed, with means, spread and differences."""

import itertools
from collections.abc import Iterator
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
    """The runs of a comparison so far. Only finished runs count; failed runs are reported."""

    comparison: Comparison
    states: tuple[RunState, ...]
    score: Literal["auto", "last", "best"]
    """Which epoch of each run counts: the last, or the best, with B0's lowest validation error (a branch that is
    trained alone: its own); auto: as the run's ``keep``."""
    confidence: float

    def of(self, arm: Arm, *statuses: str) -> list[RunState]:
        """The runs of an arm; if ``statuses`` are given, only those with one of them."""
        return [s for s in self.states if s.arm == arm.name and (not statuses or s.status in statuses)]

    @property
    def failed(self) -> list[RunState]:
        return [state for state in self.states if state.status == "failed"]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train."""
        return all(state.status in ("finished", "failed") for state in self.states)

    def score_of(self, arm: Arm) -> Literal["last", "best"]:
        """Which epoch of an arm's runs counts."""
        return arm.config.keep if self.score == "auto" else self.score

    @cached_property
    def _scores(self) -> dict[tuple[str, int], Scores]:
        which = {arm.name: self.score_of(arm) for arm in self.comparison.arms}
        done = [state for state in self.states if state.status == "finished"]
        return {(state.arm, state.seed): state.scores(which[state.arm]) for state in done}

    @property
    def branches(self) -> list[str]:
        """All branches that have a score in a finished run."""
        return sorted({branch for scores in self._scores.values() for branch in scores}) or ["B0"]

    def values(self, arm: Arm, branch: str, metric: str) -> dict[int, float]:
        """Seed -> value, for each finished run that has it."""
        found = {
            seed: scores.get(branch, {}).get(metric) for (n, seed), scores in self._scores.items() if n == arm.name
        }
        return {seed: value for seed, value in found.items() if value is not None}

    def summary(self, arm: Arm, branch: str, metric: str) -> Summary | None:
        """Mean and spread over the seeds."""
        return summarize(list(self.values(arm, branch, metric).values()))

    def difference(self, arm: Arm, reference: Arm, branch: str, metric: str) -> Difference | None:
        """An arm minus another, paired by seed; ``None`` if they share no seed."""
        if arm.name == reference.name:
            return None
        ours, theirs = (self.values(one, branch, metric) for one in (arm, reference))
        return paired_difference(ours, theirs, self.confidence)

    def pairs(self, arm: Arm, branch: str) -> list[Arm]:
        """The arms that an arm is compared with: the reference of its group, and for dhm also dsl (labels alone)."""
        arms = [self.comparison.reference_of(arm.group, branch)]
        if arm.config.method == "dhm":
            arms += [other for other in self.comparison.members(arm.group) if other.config.method == "dsl"][:1]
        return [other for n, other in enumerate(arms) if other.name != arm.name and other not in arms[:n]]

    def differences(self) -> Iterator[tuple[Arm, Arm, str, str, Difference]]:
        """All differences: arm, other arm, branch, metric and the difference."""
        for arm, branch in itertools.product(self.comparison.arms, self.branches):
            for other, metric in itertools.product(self.pairs(arm, branch), self.shown_metrics(branch)):
                found = self.difference(arm, other, branch, metric)
                if found:
                    yield arm, other, branch, metric, found

    def published(self, arm: Arm, branch: str, metric: str) -> Published | None:
        """The paper's number; ``None`` if it has none."""
        numbers = arm.paper.get(branch, ())
        place = self.comparison.metrics.index(metric)
        return numbers[place] if place < len(numbers) else None

    def timed(self, arm: Arm) -> list[RunState]:
        """The finished runs whose times count: those that had their machine to themselves, or all if none had."""
        finished = self.of(arm, "finished")
        return [state for state in finished if not state.company] or finished

    def alone(self, arm: Arm) -> bool:
        """Whether the times of an arm are those of runs that had their machine to themselves."""
        return not any(state.company for state in self.timed(arm))

    def train_seconds(self, arm: Arm) -> Summary | None:
        """Training time of a run, without validation."""
        return summarize([s.train_seconds for s in self.timed(arm) if s.train_seconds is not None])

    def val_seconds(self, arm: Arm) -> Summary | None:
        """Time in validation."""
        return summarize([state.val_seconds for state in self.timed(arm)])

    def shown_metrics(self, branch: str) -> tuple[str, ...]:
        """All metrics for B0 and for a branch that is trained alone; only the first for other side branches."""
        alone = {arm.config.only_branch for arm in self.comparison.arms}
        return self.comparison.metrics if branch in {"B0", *alone} else self.comparison.metrics[:1]
