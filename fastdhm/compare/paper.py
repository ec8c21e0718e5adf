"""The paper's tables as data: for every cell, the run it needs and the number of the authors.

Sources: Tables 1 to 5 and sections 4.3.1, App. D (sampling), E (corrupt labels), F (dropout) of Li and Chen, CVPR 2020.
An entry lists only what its run changes in the recipe of its data set, network and method (``fastdhm.recipes``).
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from fastdhm.compare.arms import Place, Published, make_config
from fastdhm.config import TrainConfig
from fastdhm.models import DEFAULT_BRANCHES
from fastdhm.recipes import recipe

COLUMNS = {"baseline": "baseline", "dsl": "DSL", "dhm": "DHM"}
ERROR, ERRORS, ACCURACY = ("top1_error",), ("top1_error", "top5_error"), ("accuracy",)
PEOPLE = ("map_percent", "rank1_percent")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run of a table."""

    name: str
    label: str
    dataset: str
    arch: str
    method: str
    changes: dict[str, Any] = field(default_factory=dict)
    places: tuple[Place, ...]
    paper: dict[str, tuple[Published, ...]]

    @property
    def values(self) -> dict[str, Any]:
        """The values that identify the run."""
        return {"dataset": self.dataset, "arch": self.arch, "method": self.method, **self.changes}

    @property
    def config(self) -> TrainConfig:
        """The config of the paper's run: its recipe with the changes."""
        return make_config(recipe(self.dataset, self.arch, self.method) | self.changes)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper."""

    title: str
    metrics: tuple[str, ...]
    seeds: int
    """How many runs the paper averages; 1 if it gives no spread."""
    entries: tuple[Entry, ...]


def _spread(mean: float, std: float) -> dict[str, tuple[Published, ...]]:
    return {"B0": ((mean, std),)}


def _values(*values: float) -> tuple[Published, ...]:
    return tuple((value, None) for value in values)


def _by_method(dataset: str, arch: str, papers: tuple, row: str | None = None, **changes: Any) -> list[Entry]:
    """An entry for each of baseline, DSL and DHM that has numbers in ``papers``."""
    return [
        Entry(
            name=method, label=column, dataset=dataset, arch=arch, method=method, changes=changes,
            places=(Place(row or arch, column),), paper=paper,
        )
        for (method, column), paper in zip(COLUMNS.items(), papers, strict=True)
        if paper is not None
    ]  # fmt: skip


TABLE1 = {
    "resnet32": ((30.306, 0.207), (30.174, 0.282), (27.404, 0.255)),
    "resnet110": ((28.598, 0.806), (28.352, 0.908), (26.312, 0.603)),
    "resnet1202": ((28.872, 1.218), (27.632, 0.923), (24.860, 1.546)),
    "densenet-40-12": ((24.830, 0.116), (24.650, 0.414), (23.112, 0.247)),
    "densenet-100-12": ((21.166, 0.259), (20.656, 0.274), (19.912, 0.201)),
    "wrn-16-8": ((20.488, 0.101), (20.052, 0.275), (18.754, 0.107)),
    "wrn-28-10": ((19.024, 0.125), (18.046, 0.264), (17.200, 0.224)),
}
TABLE2 = {
    "resnet18": ((30.046, 10.752), (29.728, 10.450), (28.714, 9.940)),
    "resnet50": ((23.990, 7.166), (23.874, 7.074), (23.430, 6.764)),
    "resnet101": ((22.636, 6.362), (22.260, 6.128), (21.348, 5.684)),
    "resnet152": ((21.894, 5.886), (21.602, 5.824), (20.810, 5.396)),
}
TABLE3 = {
    ("market1501", "resnet50"): ((70.3, 88.5), (72.0, 88.2), (76.7, 90.3)),
    ("market1501", "mobilenet"): ((55.6, 78.2), (55.6, 77.4), (59.1, 79.0)),
    ("dukemtmc", "resnet50"): ((59.4, 78.2), (60.5, 78.8), (65.4, 81.1)),
    ("dukemtmc", "mobilenet"): ((45.7, 69.0), (46.9, 68.7), (50.6, 70.5)),
}
# Table 2 has 28.714 top-1 for the same run.
RESNET18_DHM = (28.814, 9.940)
TABLE4 = {
    ("B1",): (29.276, 10.272),
    ("B2",): (29.248, 10.258),
    ("B1", "B2"): RESNET18_DHM,
    ("B1", "B2", "B3"): (29.220, 10.044),
}
TABLE5 = {  # branch -> trained alone, trained with mimicking
    "B0": ((30.046, 10.752), RESNET18_DHM),
    "B1": ((27.988, 9.560), (27.626, 9.176)),
    "B2": ((31.458, 11.522), (29.544, 10.370)),
}
CORRUPT = {0.2: ((71.122, 0.269), (74.528, 0.433)), 0.5: ((61.268, 0.311), (64.226, 0.300))}
DROPOUT = ((18.698, 0.154), (16.790, 0.110))
BERNOULLI = (27.002, 0.316)
DIRECTIONS = {"bottom-up": (29.670,), "top-down": (29.385,), "both": (28.814,)}


def _imagenet18(name: str, label: str, place: Place, paper: tuple[Published, ...], **changes: Any) -> Entry:
    method = changes.pop("method", "dhm")
    return Entry(
        name=name, label=label, dataset="imagenet", arch="resnet18", method=method, changes=changes,
        places=(place,), paper={place.branch: paper},
    )  # fmt: skip


def _table1() -> list[Entry]:
    return [e for arch, row in TABLE1.items() for e in _by_method("cifar100", arch, tuple(_spread(*v) for v in row))]


def _table2() -> list[Entry]:
    papers = {arch: tuple({"B0": _values(*pair)} for pair in row) for arch, row in TABLE2.items()}
    return [entry for arch, paper in papers.items() for entry in _by_method("imagenet", arch, paper)]


def _table3() -> list[Entry]:
    entries = []
    for (dataset, arch), row in TABLE3.items():
        papers = tuple({"B0": _values(*pair)} for pair in row)
        entries += _by_method(dataset, arch, papers, f"{dataset} {arch}")
    return entries


def _table4() -> list[Entry]:
    alone = _imagenet18("baseline", "B0", Place("B0", "DHM"), _values(30.046, 10.752), method="baseline")
    rows = {"B0 + " + " + ".join(branches): (branches, pair) for branches, pair in TABLE4.items()}
    return [alone] + [
        _imagenet18(f"dhm-{'+'.join(branches)}", row, Place(row, "DHM"), _values(*pair), branches=branches)
        for row, (branches, pair) in rows.items()
    ]


def _directions() -> list[Entry]:
    base, dsl = ((TABLE2["resnet18"][n][0],) for n in (0, 1))
    return [
        _imagenet18("baseline", "baseline", Place("baseline", "top-1"), _values(*base), method="baseline"),
        _imagenet18("dsl", "DSL", Place("DSL", "top-1"), _values(*dsl), method="dsl"),
        *(
            _imagenet18(f"dhm-{way}", f"DHM, {way}", Place(way, "top-1"), _values(*paper), direction=way)
            for way, paper in DIRECTIONS.items()
        ),
    ]


def _table5() -> list[Entry]:
    alone = [
        _imagenet18(
            "baseline" if branch == "B0" else f"only-{branch}", f"{branch} alone", Place(branch, "independent", branch),
            _values(*papers[0]), method="baseline", **({} if branch == "B0" else {"only_branch": branch}),
        )
        for branch, papers in TABLE5.items()
    ]  # fmt: skip
    together = Entry(
        name="dhm", label="DHM", dataset="imagenet", arch="resnet18", method="dhm",
        places=tuple(Place(branch, "mimicking", branch) for branch in TABLE5),
        paper={branch: _values(*papers[1]) for branch, papers in TABLE5.items()},
    )  # fmt: skip
    return [*alone, together]


def _corrupt() -> list[Entry]:
    entries = []
    for rate, (base, dhm) in CORRUPT.items():
        papers = (_spread(*base), None, _spread(*dhm))
        entries += _by_method("cifar100", "wrn-28-10", papers, f"{rate:.0%} random labels", corrupt_labels=rate)
    return entries


def _dropout() -> list[Entry]:
    papers = (_spread(*DROPOUT[0]), None, _spread(*DROPOUT[1]))
    return _by_method("cifar100", "wrn-28-10", papers, "wrn-28-10, dropout 0.3", dropout=0.3)


def _bernoulli() -> list[Entry]:
    sampled = Entry(
        name="dhm-bernoulli", label="DHM, a coin per branch and epoch", dataset="cifar100", arch="resnet32",
        method="dhm", changes={"sampler": "bernoulli"}, places=(Place("resnet32", "DHM, bernoulli"),),
        paper=_spread(*BERNOULLI),
    )  # fmt: skip
    return [*_by_method("cifar100", "resnet32", tuple(_spread(*v) for v in TABLE1["resnet32"])), sampled]


def _table(title: str, metrics: tuple[str, ...], seeds: int, entries: list[Entry]) -> Table:
    return Table(title=title, metrics=metrics, seeds=seeds, entries=tuple(entries))


TABLES = {
    "1": _table("Table 1: CIFAR-100", ERROR, 5, _table1()),
    "2": _table("Table 2: ImageNet", ERRORS, 1, _table2()),
    "3": _table("Table 3: re-identification", PEOPLE, 1, _table3()),
    "4": _table("Table 4: which branches, ResNet-18 on ImageNet", ERRORS, 1, _table4()),
    "5": _table("Table 5: each branch alone and with mimicking, ResNet-18 on ImageNet", ERRORS, 1, _table5()),
    "directions": _table("4.3.1: who mimics whom, ResNet-18 on ImageNet", ERROR, 1, _directions()),
    "corrupt": _table("App. E: random labels, WRN-28-10 on CIFAR-100", ACCURACY, 5, _corrupt()),
    "dropout": _table("App. F: WRN-28-10 with dropout on CIFAR-100", ERROR, 5, _dropout()),
    "bernoulli": _table("App. D: sampled branches, ResNet-32 on CIFAR-100", ERROR, 5, _bernoulli()),
}


def identity(values: dict[str, Any]) -> tuple:
    """A key of these config values: equal for two runs that are the same run of the paper, with any recipe."""
    usual = {"direction": "both", "sampler": "binary", "keep_prob": 0.5, "dropout": 0.0, "corrupt_labels": 0.0}
    branches = () if values["method"] == "baseline" else tuple(values.get("branches") or DEFAULT_BRANCHES)
    names = (values["dataset"], values["arch"], values["method"], branches, values.get("only_branch"))
    return (*names, *(values.get(name, value) for name, value in usual.items()))


def known(config: TrainConfig, metrics: tuple[str, ...]) -> Entry | None:
    """The paper's run that ``config`` corresponds to, with any recipe; only from tables with these ``metrics``."""
    entries = [entry for table in TABLES.values() if table.metrics == metrics for entry in table.entries]
    own = identity(dataclasses.asdict(config))
    return next((entry for entry in entries if identity(entry.values) == own), None)
