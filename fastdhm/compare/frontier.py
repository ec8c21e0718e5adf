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

Point = tuple[Arm, float, dict[str, list[float]]]  # the cost, and the errors of each branch


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
    runs = results.of(arm, "finished")
    alone = [run.train_seconds for run in runs if run.train_seconds and not run.company]
    return min(alone, default=None)


def points(results: Results, group: str, cost_of: Callable[[Results, Arm], float | None] = work_of) -> list[Point]:
    """Of every arm with finished runs whose cost is known, cheapest first; the cost is over that of the cheapest."""
    found = []
    for arm in results.comparison.members(group):
        errors = {name: [*results.values(arm, name, "top1_error").values()] for name in results.branches}
        errors = {name: values for name, values in errors.items() if values}
        if "B0" in errors and (cost := cost_of(results, arm)):
            found.append((arm, cost, errors))
    found.sort(key=lambda point: point[1])
    return [(arm, cost / found[0][1], errors) for arm, cost, errors in found]


def plot_frontier(path: Path, results: Results) -> bool:
    """Draw it for each group in which two methods have points, over work and over time; whether there is one.

    Times of runs on several kinds of machine, or of fewer arms than have a known work, are left out.
    """
    groups = {}
    for group in results.comparison.groups:
        by_work, by_time = (points(results, group, cost_of) for cost_of in (work_of, time_of))
        machines = {run.machine for arm, *_ in by_work for run in results.of(arm, "finished")}
        if len(by_work) > 1:
            groups[group] = (by_work, by_time if len(machines) == 1 and len(by_time) >= len(by_work) else [])
    if not groups:
        return False
    columns = 1 + any(by_time for _, by_time in groups.values())
    lines = "points: mean over seeds; bars: their range; small: the other branches; line: no cheaper one is better"
    figure, axes = figure_of(results, rows=len(groups), columns=columns, lines=lines)
    for (group, both), row in zip(groups.items(), axes, strict=True):
        costs = ("multiply-adds of the training", f"training time of the fastest seed ({machine(results, group)})")
        for some, cost, axis in zip(both, costs, row, strict=False):
            if not some:
                axis.set_visible(False)
                continue
            _draw(axis, some, {arm.name: colour for colour, arm in coloured(results, group)})
            axis.set_title(group, fontsize=9)
            axis.set_xlabel(f"{cost}, over the cheapest")
        row[0].set_ylabel(f"{judged(results, group)} top-1 error, %")
        row[0].legend(frameon=False, fontsize=7)
    save_figure(figure, path, dpi=130)
    return True


def _draw(axis, points: list[Point], colours: dict[str, str]) -> None:
    best: list[tuple[float, float]] = []
    for arm, cost, errors in points:
        mean, colour = fmean(errors["B0"]), colours[arm.name]
        reach = [[mean - min(errors["B0"])], [max(errors["B0"]) - mean]]
        label = f"{arm.label} (n = {len(errors['B0'])})"
        axis.errorbar(cost, mean, reach, color=colour, marker="o", capsize=3, label=label)
        for name, values in errors.items():
            if name != "B0":
                axis.plot(cost, fmean(values), color=colour, marker=f"${name}$", ms=9, mew=0.2)
        if not best or mean < best[-1][1]:
            best.append((cost, mean))
    axis.plot(*zip(*best, strict=True), color="0.6", lw=1, drawstyle="steps-post", zorder=0)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
