"""What has to be said beside the numbers of a comparison: what they are, what they do not show, what is missing."""

import itertools
from collections.abc import Iterable

from fastdhm.compare.arms import Arm
from fastdhm.compare.results import Results
from fastdhm.config import TrainConfig
from fastdhm.data.sources.identity import changes
from fastdhm.data.sources.source import is_reid
from fastdhm.engine.saved.judged import judged_images, judged_on
from fastdhm.system.console import paste

METRICS = {
    "top1_error": "top-1 error, %",
    "top5_error": "top-5 error, %",
    "accuracy": "top-1 accuracy, %",
    "map_percent": "mAP, %",
    "rank1_percent": "rank-1, %",
}


def what_is_counted(results: Results) -> str:
    """What the numbers are, and what the intervals are about."""
    arms = results.comparison.arms
    metrics = " and ".join(METRICS[metric] for metric in results.comparison.metrics)
    if "map_percent" in results.comparison.metrics:
        what = f"{metrics}, of the stripped network at the end of each run"
    else:
        on = " or ".join(dict.fromkeys(judged_images(arm.config) for arm in arms))
        what = f"{metrics}, on {on}, {_epochs(results)}"
    return (
        f"{what}; mean ± sample standard deviation over the n seeds that are finished. Intervals and p-values: "
        "Student's t on the differences by seed, each on its own, not corrected for their number. They are about the "
        f"luck of the training seed alone: {_shared([arm.config for arm in arms])}; other images may say otherwise."
    )


def _epochs(results: Results) -> str:
    """Which epoch of a run counts, by arm where they are not alike."""
    said = {
        "last": "of each run's last epoch",
        "best": f"of each run's epoch with the lowest {_judged(results)}, which flatters it, as the epoch is chosen by "
        "the images that it is judged on",
    }
    arms = {which: [a for a in results.comparison.arms if results.score_of(a) == which] for which in said}
    used = [which for which in said if arms[which]]
    who = {which: f" ({', '.join(arm.label for arm in arms[which])})" * (len(used) > 1) for which in used}
    return " or ".join(said[which] + who[which] for which in used)


def _judged(results: Results) -> str:
    """Whose error picks the best epoch: B0's, but where a branch is trained alone that one's."""
    arms = results.comparison.arms
    kind = f"{judged_on(arms[0].config)} error of "
    alone = [arm.config.only_branch or "B0" for arm in arms]
    others = sorted({name for name in alone if name != "B0"})
    if "B0" not in alone:
        return kind + (others[0] if len(others) == 1 else f"the branch that is trained alone ({', '.join(others)})")
    return kind + "B0" + f", or of the branch that is trained alone ({', '.join(others)})" * bool(others)


def _shared(configs: list[TrainConfig]) -> str:
    """What all runs have in common, whatever their seed."""
    images = "the same part of the training images" if any(c.subset for c in configs) else "the same training images"
    labels = ", with the same random labels," if any(c.corrupt_labels for c in configs) else ""
    judged = "ranks the same people" if is_reid(configs[0].dataset) else "is judged on the same images"
    return f"every run learns from {images}{labels} and {judged}"


def remarks(results: Results) -> list[str]:
    """What has to be known beside the tables: what is not the paper's, what is missing, what failed."""
    lines = [f"Note: {note}." for note in results.comparison.notes]
    lines += [*_other_data(results), *_other_machines(results), *_one_seed(results), *_without_reference(results)]
    if len(results.comparison.made_by) > 1:
        versions = " and by ".join(results.comparison.made_by)
        lines.append(f"Made by {versions}: runs of one seed need not begin from the same weights in both.")
    left = sum(state.status in ("missing", "begun") for state in results.states)
    if left:
        lines.append(f"Not complete: {left} of {len(results.states)} runs are not finished.")
    arms = {arm.name: arm for arm in results.comparison.arms}
    lines += [
        f"Failed, and in no mean or pair: {_name(results, arms[state.arm])}, seed {state.seed}: {state.failure}."
        for state in results.failed
    ]
    return lines


def _name(results: Results, arm: Arm) -> str:
    """An arm for a person: its label, which several groups may have alike."""
    return arm.label if len(results.comparison.groups) == 1 else arm.name


def _other_data(results: Results) -> Iterable[str]:
    """Runs of other images than the first of their group: numbers of both are no sample of one thing."""
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
                f"Not the same images: {', '.join(others)} learnt from or was judged on others than {runs[0].name} "
                f"({difference}), so means and intervals over both say nothing: compare in another folder."
            )


def _other_machines(results: Results) -> Iterable[str]:
    """Arms of a group that were trained on several kinds of machine."""
    for group in results.comparison.groups:
        arms = {arm.name for arm in results.comparison.members(group)}
        machines = sorted({s.machine for s in results.states if s.arm in arms and s.status == "finished"})
        if len(machines) > 1:
            of = f" of {group}" * bool(group)
            yield f"Runs{of} were made on {' and on '.join(machines)}: see the table of times."


def _one_seed(results: Results) -> Iterable[str]:
    """A single run of each is no sample."""
    if len(results.comparison.seeds) == 1:
        yield "One run of each: there is no spread, and a difference cannot be told from the luck of the seed."


def _without_reference(results: Results) -> Iterable[str]:
    """Which side branches stand in the table and have no difference, as what they would be compared with lacks them."""
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
