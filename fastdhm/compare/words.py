"""Remarks for the numbers of a comparison: what they are, what they do not show, and what is missing."""

import itertools
from collections.abc import Iterable

from fastdhm.compare.arms import Arm
from fastdhm.compare.results import Results
from fastdhm.config import TrainConfig
from fastdhm.data.sources.identity import changes
from fastdhm.data.sources.source import is_reid
from fastdhm.engine.saved.judged import judged_images, judged_on
from fastdhm.errors import counted
from fastdhm.system.console import paste

METRICS = {
    "top1_error": "top-1 error, %",
    "top5_error": "top-5 error, %",
    "accuracy": "top-1 accuracy, %",
    "map_percent": "mAP, %",
    "rank1_percent": "rank-1, %",
}

NEEDED = " Needed: of a difference with this mean and spread, so many pairs show in 80% of the cases that it is not 0."


def what_is_counted(results: Results) -> str:
    """What the numbers and the intervals mean."""
    arms = results.comparison.arms
    metrics = " and ".join(METRICS[metric] for metric in results.comparison.metrics)
    if "map_percent" in results.comparison.metrics:
        what = f"{metrics}, of the stripped network at the end of each run"
    else:
        on = " or ".join(dict.fromkeys(judged_images(arm.config) for arm in arms))
        what = f"{metrics}, on {on}, {_epochs(results)}"
    unsettled = any(found.n_needed for *_, found in results.differences())
    return (
        f"{what}; mean ± sample standard deviation over the n finished seeds. Intervals and p-values: Student's t on "
        "the differences by seed, each by itself, not corrected for their number. They cover only the luck of the "
        f"training seed: {_shared([arm.config for arm in arms])}. Other images may give other results."
        + NEEDED
        * unsettled
    )


def _epochs(results: Results) -> str:
    """Which epoch of a run counts; by arm, if that differs."""
    said = {
        "last": "of each run's last epoch",
        "best": f"of each run's epoch with the lowest {_judged(results)} (this flatters the result: the same images "
        "choose the epoch and judge it)",
    }
    arms = {which: [a for a in results.comparison.arms if results.score_of(a) == which] for which in said}
    used = [which for which in said if arms[which]]
    who = {which: f" ({', '.join(arm.label for arm in arms[which])})" * (len(used) > 1) for which in used}
    return " or ".join(said[which] + who[which] for which in used)


def _judged(results: Results) -> str:
    """Whose error chooses the best epoch: B0's, or that of a branch that is trained alone."""
    arms = results.comparison.arms
    kind = f"{judged_on(arms[0].config)} error of "
    alone = [arm.config.only_branch or "B0" for arm in arms]
    others = sorted({name for name in alone if name != "B0"})
    if "B0" not in alone:
        return kind + (others[0] if len(others) == 1 else f"the branch that is trained alone ({', '.join(others)})")
    return kind + "B0" + f", or of the branch that is trained alone ({', '.join(others)})" * bool(others)


def _shared(configs: list[TrainConfig]) -> str:
    """What runs of all seeds have in common."""
    images = "the same part of the training images" if any(c.subset for c in configs) else "the same training images"
    labels = ", with the same random labels," if any(c.corrupt_labels for c in configs) else ""
    judged = "ranks the same people" if is_reid(configs[0].dataset) else "is judged on the same images"
    return f"every run learns from {images}{labels} and {judged}"


def remarks(results: Results) -> list[str]:
    """What the reader of the tables must know: what differs from the paper, what is missing, what failed."""
    lines = [f"Note: {note}." for note in results.comparison.notes]
    found = (_other_data, _other_machines, _company, _one_seed, _without_reference)
    lines += [line for remark in found for line in remark(results)]
    if len(results.comparison.made_by) > 1:
        versions = " and by ".join(results.comparison.made_by)
        lines.append(f"Made by {versions}: runs with one seed may begin with different weights in them.")
    left = sum(state.status in ("missing", "begun") for state in results.states)
    if left:
        lines.append(f"Not complete: {left} of {len(results.states)} runs {'is' if left == 1 else 'are'} not finished.")
    arms = {arm.name: arm for arm in results.comparison.arms}
    lines += [
        f"Failed, so not in any mean or pair: {_name(results, arms[state.arm])}, seed {state.seed}: {state.failure}."
        for state in results.failed
    ]
    return lines


def _name(results: Results, arm: Arm) -> str:
    """The name of an arm for users: its label, or its full name if there are several groups."""
    return arm.label if len(results.comparison.groups) == 1 else arm.name


def _other_data(results: Results) -> Iterable[str]:
    """Runs on other images than the first run of their group: their numbers must not be averaged."""
    for group in results.comparison.groups:
        names = {arm.name for arm in results.comparison.members(group)}
        runs = [state for state in results.states if state.arm in names and state.data]
        found: dict[str, list[str]] = {}
        for state in runs[1:]:
            difference = "; ".join(changes(runs[0].data, state.data))
            if difference:
                found.setdefault(difference, []).append(state.name)
        for difference, others in found.items():
            yield (
                f"Not the same images: {', '.join(others)} and {runs[0].name} were trained or evaluated on different "
                f"images ({difference}), so means and intervals over them are not valid: compare in another folder."
            )


def _other_machines(results: Results) -> Iterable[str]:
    """Groups whose runs were trained on several kinds of machine."""
    for group in results.comparison.groups:
        arms = {arm.name for arm in results.comparison.members(group)}
        machines = sorted({s.machine for s in results.states if s.arm in arms and s.status == "finished"})
        if len(machines) > 1:
            of = f" of {group}" * bool(group)
            yield f"Runs{of} were trained on {' and on '.join(machines)}: see the table of times."


def _company(results: Results) -> Iterable[str]:
    """Runs whose times are not those of a run alone."""
    shared = [state for state in results.states if state.status == "finished" and state.company]
    if shared:
        how = " and ".join(dict.fromkeys(state.company for state in shared))
        yield (
            f"{counted(len(shared), 'run')} shared a machine with others, or may have ({how}): their times count only "
            "where a method has no others, and then have no ratio. If time is the question, run the methods one by one."
        )


def _one_seed(results: Results) -> Iterable[str]:
    """With one seed there is no spread."""
    if len(results.comparison.seeds) == 1:
        yield "One run of each: there is no spread, so a difference may be only the luck of the seed."


def _without_reference(results: Results) -> Iterable[str]:
    """Side branches that are in the table but have no difference, because the reference does not have them."""
    comparison = results.comparison
    shown = {(arm.group, branch) for arm, _, branch, _, _ in results.differences()}
    unmatched: dict[tuple[str, str], list[str]] = {}
    for group, branch in itertools.product(comparison.groups, results.branches):
        metric = results.shown_metrics(branch)[0]
        reference = comparison.reference_of(group, branch)
        having = [arm for arm in comparison.members(group) if results.values(arm, branch, metric)]
        if len(having) > 1 and reference not in having and (group, branch) not in shown:
            name = having[0].config.method if len(comparison.groups) > 1 else having[0].label
            unmatched.setdefault((reference.label, name), []).append(branch)
    for (standard, other), branches in unmatched.items():
        names = ", ".join(dict.fromkeys(branches))
        yield (
            f"{names}: no difference from {standard}, which has no such branch. `fastdhm compare --resume FOLDER "
            f"--report-only --reference {paste(other)}` shows theirs from {other}."
        )
