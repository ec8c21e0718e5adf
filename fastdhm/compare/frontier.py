"""The frontier of a comparison: the error that a method reaches against the work and the time of its training."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from fastdhm import models
from fastdhm.compare.arms import Arm
from fastdhm.compare.plots import coloured, figure_of, judged, machine
from fastdhm.compare.results import Results
from fastdhm.config import TrainConfig
from fastdhm.errors import UserError
from fastdhm.methods import branch_sets
from fastdhm.system.plotting import save_figure

Point = tuple[Arm, float, list[float]]  # the cost, and the errors of B0


def work(config: TrainConfig) -> float | None:
    """Multiply-adds that a training image costs over all epochs of a run, forward and backward.

    They are those of its network at its image size, on average over the sets of branches that are drawn. ``None`` if
    the run computes something else at times: a teacher's answers, smaller images, frozen layers, one branch alone.
    """
    if config.teacher or config.progressive or config.freeze_epochs or config.only_branch:
        return None
    side = () if config.method == "baseline" else config.branches
    try:
        costs = models.inventory(config.arch, None, config.image_size, side).branches
    except UserError:  # a network of the user's own
        return None
    macs = {name: cost.macs for name, cost in costs.items()}
    trunk = macs.pop("B0")
    sets = branch_sets(config.branch_sets, macs) if config.sampler == "structural" else {tuple(macs): 1.0}
    drawn = sum(prob * sum(macs[name] for name in names) for names, prob in sets.items())
    return 3 * config.epochs * (trunk + drawn)  # a layer's gradients cost twice its forward pass


def work_of(results: Results, arm: Arm) -> float | None:
    """The work of an arm's runs."""
    return work(arm.config)


def time_of(results: Results, arm: Arm) -> float | None:
    """Seconds of training of the arm's fastest run: others may have waited for what else the machine did."""
    seconds = [run.train_seconds for run in results.timed(arm) if run.train_seconds]
    return min(seconds, default=None) if results.alone(arm) else None


def points(results: Results, group: str, cost_of: Callable[[Results, Arm], float | None] = work_of) -> list[Point]:
    """Of every arm with finished runs whose cost is known, cheapest first; the cost is over that of the cheapest."""
    found = []
    for arm in results.comparison.members(group):
        errors = [*results.values(arm, "B0", "top1_error").values()]
        if errors and (cost := cost_of(results, arm)):
            found.append((arm, cost, errors))
    found.sort(key=lambda point: point[1])
    return [(arm, cost / found[0][1], errors) for arm, cost, errors in found]


def plot_frontier(path: Path, results: Results) -> bool:
    """Draw it for each group in which two methods have points, over work and over time; whether there is one.

    Times of runs that shared their machine are left out, and all times if the runs were on several kinds of machine or
    an arm has none.
    """
    groups = {}
    for group in results.comparison.groups:
        by_work, by_time = (points(results, group, cost_of) for cost_of in (work_of, time_of))
        machines = {run.machine for arm, *_ in by_time for run in results.timed(arm)}
        every = {arm.name for arm, *_ in by_work} <= {arm.name for arm, *_ in by_time}
        if len(by_work) > 1:
            groups[group] = (by_work, by_time if every and len(machines) == 1 else [])
    if not groups:
        return False
    columns = 1 + any(by_time for _, by_time in groups.values())
    lines = "points: mean over seeds; bars: their range; line: no cheaper one is better"
    figure, axes = figure_of(results, rows=len(groups), columns=columns, lines=lines)
    for (group, both), row in zip(groups.items(), axes, strict=True):
        colours = {arm.name: colour for colour, arm in coloured(results, group)}
        costs = ("multiply-adds", f"time of the fastest seed ({machine(results, group)})")
        for some, cost, axis in zip(both, costs, row, strict=False):
            axis.set_visible(bool(some))
            if not some:
                continue
            _draw(axis, some, colours)
            axis.set_title(group, fontsize=9)
            axis.set_xlabel(f"training: {cost}, over the cheapest", fontsize=9)
        row[0].set_ylabel(f"{judged(results, group)} top-1 error of B0, %")
        named = {label: one for axis in row for one, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        last = [axis for axis in row if axis.get_visible()][-1]
        last.legend(named.values(), named, loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, frameon=False)
    save_figure(figure, path, dpi=130)
    return True


def _draw(axis, points: list[Point], colours: dict[str, str]) -> None:
    best: list[tuple[float, float]] = []
    apart = 0.02 * (points[-1][1] - 1 or 1)  # arms of one cost stand beside each other
    for arm, cost, errors in points:
        mean = fmean(errors)
        beside = [other.name for other, its, _ in points if abs(its - cost) < apart].index(arm.name)
        reach = [[mean - min(errors)], [max(errors) - mean]]
        label = f"{arm.label} (n = {len(errors)})"
        axis.errorbar(cost + apart * beside, mean, reach, color=colours[arm.name], marker="o", capsize=3, label=label)
        if not best or mean < best[-1][1]:
            best.append((cost, mean))
    axis.plot(*zip(*best, strict=True), color="0.6", lw=1, drawstyle="steps-post", zorder=0)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
