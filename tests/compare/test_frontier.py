"""The work of a run's training, and the points of the frontier."""

from dataclasses import replace

import pytest
from PIL import Image

from fastdhm import models
from fastdhm.compare import frontier
from fastdhm.compare.arms import Variant
from fastdhm.compare.frontier import plot_frontier, points, time_of, work
from fastdhm.compare.plan import compare_methods
from fastdhm.compare.results import Results
from fastdhm.compare.runs import RunState
from fastdhm.config import TrainConfig

CONFIG = {"arch": "resnet20", "image_size": 32, "epochs": 10}


def macs():
    return {name: cost.macs for name, cost in models.inventory("resnet20", None, 32).branches.items()}


def test_work_is_that_of_the_branches_that_are_computed():
    of = macs()
    assert work(TrainConfig(**CONFIG, method="baseline")) == 30 * of["B0"]
    assert work(TrainConfig(**CONFIG, method="dhm")) == 30 * sum(of.values())
    assert work(TrainConfig(**CONFIG, method="dhm", branches=("B2",))) == 30 * (of["B0"] + of["B2"])
    assert work(TrainConfig(**CONFIG, method="dhm", sampler="bernoulli")) == 30 * sum(of.values())
    sampled = TrainConfig(**CONFIG, method="dhm", sampler="structural")  # each branch in half of the sets
    assert work(sampled) == pytest.approx(30 * (of["B0"] + (of["B1"] + of["B2"]) / 2))
    rarely = TrainConfig(**CONFIG, method="dhm", sampler="structural", branch_sets={"none": 0.9, "B1": 0.1})
    assert work(rarely) == pytest.approx(30 * (of["B0"] + of["B1"] / 10))


@pytest.mark.parametrize(
    "given",
    [
        {"progressive": 0.5},
        {"only_branch": "B1", "method": "baseline"},
        {"teacher": "runs/a"},
        {"freeze_epochs": 1, "weights": "a.pt"},
    ],
)
def test_work_that_changes_in_a_run_is_not_guessed(given):
    assert work(TrainConfig(**CONFIG | given)) is None


def results(company="", **given):
    variants = [Variant("dhm", "dhm", given), Variant("baseline", "baseline", given)]
    made = compare_methods(variants, (0, 1), {"dataset": "cifar100", "arch": "resnet20"})
    runs = []
    for arm, seed, errors in [
        ("dhm", 0, (29, 30)),
        ("dhm", 1, (31, 32)),
        ("baseline", 0, (40,)),
        ("baseline", 1, (42,)),
    ]:
        row = {"kind": "epoch", "epoch": 1.0, "step": 10, "val_side": 32}
        row |= {f"val_error/B{m}": error for m, error in enumerate(errors)}
        row["train_seconds"] = 100.0 * len(errors) + seed
        runs.append(RunState(arm, seed, "finished", (row,), 1.0, machine="cpu, float32", company=company))
    return Results(made, tuple(runs), "last", 0.95)


def test_points_are_the_errors_of_all_seeds_cheapest_first(tmp_path):
    of = macs()
    (baseline, one, theirs), (dhm, ratio, ours) = points(results(), "")
    assert (baseline.name, one, theirs) == ("baseline", 1, [40, 42])
    assert (dhm.name, ours) == ("dhm", [29, 31])
    assert ratio == pytest.approx(sum(of.values()) / of["B0"])
    assert plot_frontier(tmp_path / "frontier.png", results())
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_the_time_is_that_of_the_fastest_seed():
    (_, _, theirs), (_, ratio, ours) = points(results(), "", time_of)
    assert ratio == 2 and (theirs, ours) == ([40, 42], [29, 31])
    assert points(results("up to 2 at once"), "", time_of) == []


def test_a_picture_has_times_only_of_runs_that_had_a_machine_to_themselves(tmp_path):
    widths = []
    for company in ("", "up to 2 at once"):
        assert plot_frontier(tmp_path / "frontier.png", results(company))
        with Image.open(tmp_path / "frontier.png") as image:
            widths.append(image.width)
    assert widths[0] > 1.5 * widths[1]


def test_every_point_is_named_though_only_its_time_is_known(tmp_path, monkeypatch):
    made, figures = results(), []
    monkeypatch.setattr(frontier, "save_figure", lambda figure, path, dpi: figures.append(figure))
    arms = made.comparison.arms
    arms = (*arms, replace(arms[0], name="small", label="small", config=replace(arms[0].config, progressive=0.5)))
    runs = (*made.states, *(replace(state, arm="small") for state in made.states if state.arm == "dhm"))
    assert plot_frontier(tmp_path / "x", replace(made, comparison=replace(made.comparison, arms=arms), states=runs))
    (figure,) = figures
    _, by_time = figure.axes
    names = [text.get_text() for text in by_time.get_legend().get_texts()]
    assert sorted(names) == ["baseline (n = 2)", "dhm (n = 2)", "small (n = 2)"]


def test_one_method_or_unknown_work_is_no_frontier(tmp_path):
    made = results(progressive=0.5)
    assert points(made, "") == [] and not plot_frontier(tmp_path / "frontier.png", made)
    assert not (tmp_path / "frontier.png").exists()
