"""The frontier of a comparison: the error that a method reaches against the work of its training."""

from pathlib import Path
from statistics import fmean

from fastdhm import models
from fastdhm.compare.arms import Arm
from fastdhm.compare.plots import figure_of, judged
from fastdhm.compare.results import Results
from fastdhm.config import TrainConfig
from fastdhm.errors import UserError
from fastdhm.methods import branch_sets
from fastdhm.system.plotting import save_figure

Point = tuple[Arm, float, dict[str, list[float]]]  # the work, and the errors of each branch


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


def points(results: Results, group: str) -> list[Point]:
    """Of every arm with finished runs whose work is known, cheapest first; the work is over that of the cheapest."""
    found = []
    for arm in results.comparison.members(group):
        errors = {name: [*results.values(arm, name, "top1_error").values()] for name in results.branches}
        errors = {name: values for name, values in errors.items() if values}
        if "B0" in errors and (macs := work(arm.config)):
            found.append((arm, macs, errors))
    found.sort(key=lambda point: point[1])
    return [(arm, macs / found[0][1], errors) for arm, macs, errors in found]


def plot_frontier(path: Path, results: Results) -> bool:
    """Draw it for each group in which two methods have points; whether there is one."""
    found = {group: points(results, group) for group in results.comparison.groups}
    groups = {group: some for group, some in found.items() if len(some) > 1}
    if not groups:
        return False
    lines = "points: mean over seeds, bars: their range; small: the other branches; line: no cheaper one is better"
    figure, axes = figure_of(results, rows=1, columns=len(groups), lines=lines)
    for (group, some), axis in zip(groups.items(), axes[0], strict=True):
        best: list[tuple[float, float]] = []
        for number, (arm, ratio, errors) in enumerate(some):
            mean, colour = fmean(errors["B0"]), f"C{number % 10}"
            reach = [[mean - min(errors["B0"])], [max(errors["B0"]) - mean]]
            label = f"{arm.label} (n = {len(errors['B0'])})"
            axis.errorbar(ratio, mean, reach, color=colour, marker="o", capsize=3, label=label)
            for name, values in errors.items():
                if name != "B0":
                    axis.plot(ratio, fmean(values), color=colour, marker=f"${name}$", ms=9, mew=0.2)
            if not best or mean < best[-1][1]:
                best.append((ratio, mean))
        axis.plot(*zip(*best, strict=True), color="0.6", lw=1, drawstyle="steps-post", zorder=0)
        axis.set_title(group, fontsize=9)
        axis.set_xlabel("multiply-adds of the training, over the cheapest")
        axis.set_ylabel(f"{judged(results, group)} top-1 error, %")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7)
    save_figure(figure, path, dpi=130)
    return True
