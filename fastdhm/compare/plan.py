"""Plans the runs of a comparison: the user's methods, or a table of the paper, which may be shrunk."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fastdhm import models
from fastdhm.compare.arms import OF_BRANCHES, OF_MIMICKING, Arm, Variant, changed, fitting, folder_name, make_config
from fastdhm.compare.paper import ERROR, ERRORS, PEOPLE, TABLES, Entry, Table, known
from fastdhm.config import TrainConfig
from fastdhm.data.sources.source import is_reid
from fastdhm.engine.optim.by_name import fitted
from fastdhm.engine.optim.schedule import describe_falls
from fastdhm.errors import UserError, counted, unknown
from fastdhm.recipes import recipe, warm_up
from fastdhm.system.paths import shown

# What changes with the data set when a table is made on another one; the rest of the recipe stays the paper's.
OF_THE_DATA = ("image_size", "mean", "std", "crop", "crop_ratio", "pad", "flip")
RAMP = 0.1  # share of a shrunk run's epochs: without a ramp some short runs stalled, with about this they went well


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is trained, and how the results are shown."""

    title: str
    table: str | None
    metrics: tuple[str, ...]
    """The first one is compared; B0 is shown in all of them."""
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    reference: str | None
    """Name of the arm that the others of its group are compared with; ``None``: the baseline, else the first."""
    notes: tuple[str, ...]
    """What must be shown with every result: how the setting differs from the paper's."""
    command: str = ""
    """The command that the user typed."""
    made_by: tuple[str, ...] = ()
    """The versions of fastdhm and torch that trained its runs."""

    def __post_init__(self) -> None:
        if not self.arms or not self.metrics:
            raise UserError("arms and metrics must each have at least one entry")
        if not self.seeds or not all(0 <= seed < 2**63 for seed in self.seeds):
            raise UserError(f"seeds is {list(self.seeds)}: must be a list of numbers in [0, 2**63), such as [0, 1, 2]")
        for what, values in (("seeds", self.seeds), ("arms", [arm.name for arm in self.arms])):
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                raise UserError(f"{what} has {twice[0]} twice: must have each only once")

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(arm.group for arm in self.arms))

    def members(self, group: str) -> list[Arm]:
        """The arms of a group."""
        return [arm for arm in self.arms if arm.group == group]

    def reference_of(self, group: str, branch: str = "B0") -> Arm:
        """The arm that others of ``group`` are compared with; for a side branch, one that trains it alone, if any."""
        arms = self.members(group)
        alone = [arm for arm in arms if branch != "B0" and arm.config.only_branch == branch]
        if alone and self.reference is None:
            return alone[0]
        if self.reference is not None:
            named = [arm for arm in arms if self.reference in (arm.name, arm.label)]
            arms = named or [arm for arm in arms if self.reference == arm.config.method] or arms
            return arms[0]
        trunks = [arm for arm in arms if arm.config.method == "baseline" and arm.config.only_branch in (None, "B0")]
        return next((arm for arm in trunks if arm.name.endswith("baseline")), (trunks or arms)[0])


def compare_methods(
    variants: list[Variant], seeds: tuple[int, ...], given: dict[str, Any], reference: str | None = None
) -> Comparison:
    """A comparison of ``variants`` on one data set and network; ``given`` are the values for all runs."""
    arms, set_by_name = [], {}
    for variant in variants:
        values = fitting(variant.method, given) | {"method": variant.method} | variant.changes
        config = make_config(with_recipe(values) | values)
        arms.append(Arm(name=folder_name(variant.name), label=variant.name, config=config))
        set_by_name[arms[-1].name] = variant.changes
    if reference is not None and reference not in {name for arm in arms for name in (arm.name, arm.label)}:
        raise unknown("reference", reference, [arm.label for arm in arms])
    first = arms[0].config
    metrics = PEOPLE if is_reid(first.dataset) else ERRORS if first.dataset == "imagenet" else ERROR
    arms, notes = _beside_the_paper(arms, metrics)
    size = f", {first.subset:,} training images" if first.subset else ""
    title = f"{dataset_name(first.dataset)}, {first.arch}, {counted(first.epochs, 'epoch')}{size}"
    papers = {arm.name: entry for arm in arms if (entry := known(arm.config, metrics))}
    notes += beside_the_method(arms, set_by_name, papers)
    return Comparison(
        title=title, table=None, metrics=metrics, arms=tuple(arms), seeds=seeds, reference=reference,
        notes=(*notes, *_warnings(arms)),
    )  # fmt: skip


def with_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """The recipe for a run with ``values``, as ``fastdhm train`` uses it."""
    base = recipe_alone(values)
    return base | scaled_rate(base | values)


def recipe_alone(values: dict[str, Any]) -> dict[str, Any]:
    """The recipe for the data set, network, method, preset and optimizer of a run."""
    usual = TrainConfig()
    dataset, preset = (values.get(name, getattr(usual, name)) for name in ("dataset", "preset"))
    found = recipe(dataset, values.get("arch"), values["method"], preset)
    return found | (fitted(found, values["optimizer"], values.get("lr")) if "optimizer" in values else {})


def scaled_rate(values: dict[str, Any]) -> dict[str, Any]:
    """The warm-up that a run with ``values`` needs if its learning rate is scaled, for its number of epochs."""
    return warm_up(values, values["epochs"]) if values.get("scale_lr") else {}


def _beside_the_paper(arms: list[Arm], metrics: tuple[str, ...]) -> tuple[list[Arm], list[str]]:
    """The arms, with the paper's numbers if it has such a run; and notes on how they differ from that run."""
    entries = {arm.name: known(arm.config, metrics) for arm in arms}
    arms = [dataclasses.replace(arm, paper=e.paper) if (e := entries[arm.name]) else arm for arm in arms]
    notes = _differences((arm, entry) for arm in arms if (entry := entries[arm.name]))
    return arms, notes


def _differences(pairs: Iterable[tuple[Arm, Entry]]) -> list[str]:
    """How runs differ from the paper's: each difference once, with its arms if not all have it."""
    pairs = list(pairs)
    found: dict[str, list[str]] = {}
    for arm, entry in pairs:
        for difference in changed(entry.config, arm.config):
            found.setdefault(difference, []).append(arm.name)
    if not found:
        return []
    arms = [arm for arm, _ in pairs]
    lines = [text if len(names) == len(arms) else f"{text} ({_who(names, arms)})" for text, names in found.items()]
    return ["not the paper's setting, so its numbers are no target for these runs: " + "; ".join(lines)]


def _who(names: list[str], arms: list[Arm]) -> str:
    """The names of arms; a whole group by the name of the group."""
    members: dict[str, list[str]] = {}
    for arm in arms:
        members.setdefault(arm.group or arm.name, []).append(arm.name)
    whole = [group for group, own in members.items() if set(own) <= set(names)]
    rest = [name for name in names if not any(name in members[group] for group in whole)]
    return ", ".join([*whole, *rest])


def beside_the_method(arms: list[Arm], set_by_name: dict[str, dict], papers: dict[str, Entry]) -> list[str]:
    """Notes on values other than the method in which arms of a group differ: results then differ for both reasons.

    Three differences are not noted. Values that a variant sets by its own name (``set_by_name``), against a variant of
    the same method: they are the purpose of the variant. Values that only mimicking has: they are part of the method.
    Branches, against a network without any. But a sampler that draws sets of branches anew each step is noted, against
    a method that computes all branches.
    """
    notes = []
    for group in dict.fromkeys(arm.group for arm in arms):
        members = [arm for arm in arms if arm.group == group]
        found: dict[str, None] = {}
        for one, other in itertools.combinations(members, 2):
            found |= dict.fromkeys(_confounds(one, other, set_by_name))
        for name in found:
            values: dict[str, list[str]] = {}
            for arm in members:
                values.setdefault(str(getattr(arm.config, name)), []).append(arm.name)
            text = " and ".join(f"{value} for {', '.join(labels)}" for value, labels in values.items())
            entries = [papers.get(arm.name) for arm in members]
            same = all(
                e and getattr(e.config, name) == getattr(a.config, name) for a, e in zip(members, entries, strict=True)
            )
            where = f" of {group}" * bool(group)
            notes.append(
                f"the runs{where} differ in more than the method, which also changes their results: {name} is {text}"
                + ", as in the paper" * same
            )
    return notes


def _confounds(one: Arm, other: Arm, set_by_name: dict[str, dict]) -> list[str]:
    """The values in which two arms differ, without the method and what each sets by its own name."""
    free, methods = ["method", "only_branch", *OF_MIMICKING], {one.config.method, other.config.method}
    if len(methods) == 1:
        free += [*set_by_name.get(one.name, ()), *set_by_name.get(other.name, ())]
    if "baseline" in methods:
        free += ["branches", *OF_BRANCHES]
    elif len(methods) > 1 and "structural" in (one.config.sampler, other.config.sampler):
        free.remove("sampler")
    return [text.partition(":")[0] for text in changed(one.config, other.config) if text.partition(":")[0] not in free]


def _warnings(arms: list[Arm]) -> list[str]:
    """Notes on settings that make every result doubtful."""
    said = {arm.name: describe_falls(arm.config.schedule, arm.config.milestones, arm.config.epochs) for arm in arms}
    texts = dict.fromkeys(text for text in said.values() if text)
    return [
        text
        + ("" if all(said.values()) and len(texts) == 1 else f" ({_who([n for n in said if said[n] == text], arms)})")
        for text in texts
    ]


def reproduce_table(
    name: str, given: dict[str, Any], seeds: tuple[int, ...] | None = None, rows: tuple[str, ...] = ()
) -> Comparison:
    """A table of the paper, or some ``rows`` of it; ``given`` shrinks or changes its runs, see :func:`shrink`.

    Raises:
        ValueError: an unknown table or row, or a given value that the table itself sets.
    """
    if name not in TABLES:
        raise unknown("table", name, TABLES)
    table = TABLES[name]
    own = {field for entry in table.entries for field in entry.changes} & given.keys()
    if own:
        raise UserError(f"{sorted(own)[0]} is given, but table {name} sets it for its runs: leave it out")
    arms: list[Arm] = []
    origins: list[Entry] = []
    for entry in _picked(table, name, rows):
        arm = _arm(table, entry, given)
        if arm.name not in {other.name for other in arms}:  # --arch, for example, makes several rows the same
            arms, origins = [*arms, arm], [*origins, entry]
    _check_branches(name, arms)
    people = PEOPLE[0] in table.metrics
    for arm in arms:
        if is_reid(arm.config.dataset) != people:
            wanted = "a re-identification set" if people else "a classification set"
            raise UserError(f"dataset is {shown(arm.config.dataset)}: table {name} needs {wanted}")
    arms, notes = _table_notes(arms, origins)
    what = " and ".join(dict.fromkeys(f"{arm.config.arch} on {dataset_name(arm.config.dataset)}" for arm in arms))
    title = table.title + (f"; here {what}, shrunk or changed, see notes" if notes else "")
    set_by_name = {arm.name: entry.changes for arm, entry in zip(arms, origins, strict=True)}
    papers = {arm.name: entry for arm, entry in zip(arms, origins, strict=True) if arm.paper}
    notes += beside_the_method(arms, set_by_name, papers)
    seeds = seeds or tuple(range(table.seeds))
    if len(seeds) != table.seeds:
        paper = f"the paper has {table.seeds}" if table.seeds > 1 else "the paper does not say how many it has"
        notes.append(f"{counted(len(seeds), 'run')} of each; {paper}")
    return Comparison(
        title=title, table=name, metrics=table.metrics, arms=tuple(arms), seeds=seeds, reference=None,
        notes=(*notes, *_warnings(arms)),
    )  # fmt: skip


def _check_branches(table: str, arms: list[Arm]) -> None:
    """``ValueError`` if the network of a run lacks a branch that the table trains."""
    for arm in arms:
        arch, named = arm.config.arch, arm.config.branches or (arm.config.only_branch,)
        wanted = [branch for branch in named if branch not in (None, "B0")]
        known_branches = models.family_of(arch).branches(arch)
        missing = [branch for branch in wanted if branch not in known_branches]
        if missing:
            raise UserError(
                f"table {table} trains {arm.label} with branch {missing[0]}, which {arch} does not have (it has "
                f"{', '.join(known_branches)}): choose other --rows, or another --arch, such as resnet18"
            )


def _picked(table: Table, name: str, rows: tuple[str, ...]) -> list[Entry]:
    known_rows = list(dict.fromkeys(place.row for entry in table.entries for place in entry.places))
    for row in rows:
        if row not in known_rows:
            raise unknown(f"row of table {name}", row, known_rows)
    return [e for e in table.entries if not rows or any(place.row in rows for place in e.places)]


def _arm(table: Table, entry: Entry, given: dict[str, Any]) -> Arm:
    values = shrink(entry, given)
    config = make_config(values)
    several = {
        field: len({getattr(other, field) for other in table.entries}) > 1 for field in ("dataset", "arch")
    }  # fmt: skip
    shown = {"dataset": dataset_name(config.dataset), "arch": config.arch}
    prefix = [shown[field] for field in ("dataset", "arch") if several[field]]
    rates = [f"{config.corrupt_labels:g}"] if len({e.changes.get("corrupt_labels") for e in table.entries}) > 1 else []
    places = tuple(
        dataclasses.replace(
            place, row=place.row.replace(entry.arch, config.arch).replace(entry.dataset, shown["dataset"])
        )
        for place in entry.places
    )
    return Arm(
        name=folder_name("-".join([*prefix, *rates, entry.name])),
        label=entry.label,
        group=", ".join([*prefix, *(f"{float(rate):.0%} random labels" for rate in rates)]),
        config=config,
        places=places,
    )


def shrink(entry: Entry, given: dict[str, Any]) -> dict[str, Any]:
    """The values of a table's run, with the values ``given`` by the user for all runs; these always win.

    Another data set has its own image size, normalisation and augmentation; the rest of the recipe stays. Other epochs
    scale the recipe's milestones, warm-up, frozen epochs and mimicking ramp in proportion. A shortened run without such
    a ramp gets one of a tenth of its epochs; without it, short runs stall.
    """
    given = fitting(entry.method, given)
    dataset, arch = given.get("dataset", entry.dataset), given.get("arch", entry.arch)
    values = recipe_alone(given | {"dataset": entry.dataset, "arch": arch, "method": entry.method})
    if dataset != entry.dataset:
        there = recipe(dataset, arch, entry.method)
        values |= {"dataset": dataset} | {name: there[name] for name in OF_THE_DATA if name in there}
    epochs = given.get("epochs", values["epochs"])
    factor = epochs / values["epochs"]
    if factor != 1:
        ramps = [name for name in ("warmup_epochs", "mimic_warmup") if name in values]
        scaled: dict[str, Any] = {name: round(values[name] * factor, 4) for name in ramps}
        if factor < 1 and not scaled.get("mimic_warmup"):
            scaled["mimic_warmup"] = round(RAMP * epochs, 4)
        frozen = max(0, min(round(values.get("freeze_epochs", 0) * factor), epochs - 1))
        scaled["milestones"] = tuple(round(at * factor, 4) for at in values.get("milestones", ()))
        values |= scaled | {"epochs": epochs, "freeze_epochs": frozen}
    own = entry.changes | given
    return values | scaled_rate(values | own) | own


def _table_notes(arms: list[Arm], origins: list[Entry]) -> tuple[list[Arm], list[str]]:
    """The arms, with the paper's numbers if data set and network are the paper's; and notes on the differences."""
    same = [(arm.config.dataset, arm.config.arch) == (e.dataset, e.arch) for arm, e in zip(arms, origins, strict=True)]
    arms = [
        dataclasses.replace(arm, paper=entry.paper) if fits else arm
        for arm, entry, fits in zip(arms, origins, same, strict=True)
    ]
    notes = _differences(zip(arms, origins, strict=True))
    if not all(same):
        notes.append("the paper's numbers are left out where data set or network are not those of the paper")
    return arms, notes


def dataset_name(dataset: str) -> str:
    """A short name of a data set: for a path, its last folder."""
    kind, _, path = dataset.partition(":")
    return path.rstrip("/").rpartition("/")[2] or kind if kind.endswith("folder") else dataset.replace(":", "-")
