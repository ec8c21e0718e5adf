"""Which runs a comparison needs: the paper's tables whole and shrunk, and what is said of the difference."""

import dataclasses

import pytest

from fastdhm.compare.arms import Variant, changed
from fastdhm.compare.paper import TABLES
from fastdhm.compare.plan import compare_methods, dataset_name, reproduce_table
from fastdhm.config import TrainConfig
from fastdhm.errors import UserError

METHODS = [Variant(method, method, {}) for method in ("baseline", "dsl", "dhm")]


def configs(comparison):
    return {arm.name: arm.config for arm in comparison.arms}


def test_table_1_is_seven_networks_by_three_methods_and_five_seeds():
    table = reproduce_table("1", {})
    assert len(table.arms) == 21 and table.seeds == (0, 1, 2, 3, 4) and not table.notes
    assert len(table.groups) == 7 and table.reference_of("wrn-28-10").name == "wrn-28-10-baseline"
    made = configs(table)
    assert made["resnet32-dhm"].epochs == 164 and made["densenet-100-12-dsl"].epochs == 300
    assert {config.dataset for config in made.values()} == {"cifar100"}
    dhm = next(arm for arm in table.arms if arm.name == "resnet110-dhm")
    assert dhm.paper == {"B0": ((26.312, 0.603),)}


@pytest.mark.parametrize(
    ("name", "arms", "seeds", "metrics"),
    [
        ("2", 12, 1, ("top1_error", "top5_error")),
        ("3", 12, 1, ("map_percent", "rank1_percent")),
        ("4", 5, 1, ("top1_error", "top5_error")),
        ("5", 4, 1, ("top1_error", "top5_error")),
        ("directions", 5, 1, ("top1_error",)),
        ("corrupt", 4, 5, ("accuracy",)),
        ("dropout", 2, 5, ("top1_error",)),
        ("bernoulli", 4, 5, ("top1_error",)),
    ],
)
def test_every_table_expands(name, arms, seeds, metrics):
    table = reproduce_table(name, {})
    assert (len(table.arms), len(table.seeds), table.metrics) == (arms, seeds, metrics)
    said = [note for note in table.notes if not note.startswith("the runs")]
    assert not said, "the paper's own runs are said not to be the paper's"
    for arm in table.arms:
        assert all(len(numbers) == len(metrics) for numbers in arm.paper.values())
        assert all(place.branch in arm.paper for place in arm.places)


def test_the_ablations_set_what_they_are_about():
    branches = [arm.config.branches for arm in reproduce_table("4", {}).arms[1:]]
    assert branches == [("B1",), ("B2",), ("B1", "B2"), ("B1", "B2", "B3")]
    assert {arm.config.only_branch for arm in reproduce_table("5", {}).arms} == {None, "B1", "B2"}
    assert {arm.config.corrupt_labels for arm in reproduce_table("corrupt", {}).arms} == {0.2, 0.5}
    assert {arm.config.dropout for arm in reproduce_table("dropout", {}).arms} == {0.3}
    assert configs(reproduce_table("bernoulli", {}))["dhm-bernoulli"].sampler == "bernoulli"
    ways = {arm.config.direction for arm in reproduce_table("directions", {}).arms if arm.config.method == "dhm"}
    assert ways == {"both", "top-down", "bottom-up"}
    assert {arm.config.dataset for arm in reproduce_table("3", {}).arms} == {"market1501", "dukemtmc"}


def test_side_branches_of_table_5_are_compared_with_themselves_alone():
    table = reproduce_table("5", {})
    assert [table.reference_of("", branch).name for branch in ("B0", "B1", "B2")] == ["baseline", "only-B1", "only-B2"]


def test_fewer_epochs_scale_the_recipe_and_bring_a_ramp():
    made = configs(reproduce_table("1", {"epochs": 41}, rows=("resnet110",)))["resnet110-dhm"]
    assert (made.epochs, made.milestones, made.warmup_epochs, made.mimic_warmup) == (41, (20.25, 30.5), 0.25, 4.1)
    people = configs(reproduce_table("3", {"epochs": 12}))["market1501-resnet50-dhm"]
    assert (people.freeze_epochs, people.milestones) == (2, (4.0, 8.0))
    single = configs(reproduce_table("3", {"epochs": 1}))["market1501-resnet50-dhm"]
    assert single.freeze_epochs == 0


def test_what_is_given_is_not_scaled():
    given = {"epochs": 16, "milestones": (4.0, 12.0), "mimic_warmup": 0.5}
    made = configs(reproduce_table("1", given, rows=("resnet32",)))["resnet32-dhm"]
    assert (made.milestones, made.mimic_warmup) == ((4.0, 12.0), 0.5)


def test_a_shrunk_table_says_so_in_title_and_words():
    table = reproduce_table("1", {"epochs": 16, "subset": 5000}, (0,), ("resnet32",))
    assert "shrunk" in table.title
    said = " ".join(table.notes)
    for words in ("epochs: 164 -> 16", "subset: None -> 5000", "mimic_warmup: 0.0 -> 1.6", "the paper has 5"):
        assert words in said
    two = " ".join(reproduce_table("1", {"epochs": 16}, rows=("resnet32", "wrn-16-8")).notes)
    assert "epochs: 164 -> 16 (resnet32); " in two and "epochs: 200 -> 16 (wrn-16-8); " in two
    assert table.arms[0].paper, "the paper's number still stands beside, with the note"


def test_another_data_set_brings_its_images_and_loses_the_papers_numbers():
    table = reproduce_table("1", {"dataset": "fashion-mnist", "arch": "resnet20"}, (0, 1))
    assert [arm.label for arm in table.arms] == ["baseline", "DSL", "DHM"], "seven networks became one"
    config = table.arms[0].config
    assert (config.image_size, config.flip, config.lr, config.batch_size, config.epochs) == (28, False, 0.1, 128, 164)
    assert not any(arm.paper for arm in table.arms)
    assert "numbers are left out" in " ".join(table.notes)
    assert table.arms[0].places[0].row == "resnet20"


@pytest.mark.parametrize(
    ("name", "given", "rows", "message"),
    [
        ("9", {}, (), "unknown table '9'"),
        ("1", {}, ("resnet33",), "unknown row of table 1 'resnet33'; did you mean 'resnet32'"),
        ("4", {"branches": ("B1",)}, (), "branches is given, but table 4 sets it"),
        ("1", {"epochs": 0}, (), "epochs is 0"),
    ],
)
def test_a_table_that_cannot_be_is_refused(name, given, rows, message):
    with pytest.raises(UserError, match=message):
        reproduce_table(name, given, rows=rows)


def test_a_plain_comparison_takes_the_recipe_and_the_papers_numbers():
    comparison = compare_methods(METHODS, (0,), {"dataset": "cifar100", "arch": "resnet32"})
    assert [arm.paper["B0"][0][0] for arm in comparison.arms] == [30.306, 30.174, 27.404]
    assert not comparison.notes
    imagenet = compare_methods(METHODS, (0,), {"dataset": "imagenet", "arch": "resnet18"})
    assert imagenet.metrics == ("top1_error", "top5_error") and imagenet.arms[2].paper["B0"][1] == (9.940, None)


def test_a_plain_comparison_with_a_changed_recipe_says_so():
    given = {"dataset": "cifar100", "arch": "resnet32", "epochs": 16}
    notes = " ".join(compare_methods(METHODS, (0,), given).notes)
    assert (
        "epochs: 164 -> 16" in notes
        and "learning rate never falls: the first milestone is epoch 81, and the run has 16" in notes
    )


def test_variants_of_the_paper_are_known_as_such():
    sampled = Variant("coin", "dhm", {"sampler": "bernoulli"})
    half = Variant("half", "dhm", {"sampler": "bernoulli", "keep_prob": 0.25})
    comparison = compare_methods([*METHODS, sampled, half], (0,), {"dataset": "cifar100", "arch": "resnet32"})
    assert comparison.arms[3].paper == {"B0": ((27.002, 0.316),)} and not comparison.arms[4].paper


def test_what_only_dhm_has_is_given_to_dhm_alone():
    made = configs(compare_methods(METHODS, (0,), {"dataset": "synthetic", "direction": "top-down"}))
    assert [made[name].direction for name in ("baseline", "dsl", "dhm")] == ["both", "both", "top-down"]


def test_a_preset_is_that_of_train_for_each_method():
    given = {"dataset": "synthetic", "preset": "fast", "grad_cosine": 10}
    made = configs(compare_methods(METHODS, (0,), given))
    assert [made[name].sampler for name in ("baseline", "dsl", "dhm")] == ["binary", "binary", "structural"]
    assert [made[name].grad_cosine for name in ("baseline", "dsl", "dhm")] == [0, 10, 10]
    assert made["dhm"].epochs == 2 and made["dhm"].scale_lr


def test_an_unused_scale_of_the_learning_rate_is_no_difference():
    old, new = TrainConfig(), TrainConfig(lr_batch_size=32, preset="fast", run_dir="x", seed=4, workers=3)
    assert not changed(old, new)
    assert changed(old, dataclasses.replace(new, scale_lr=True, warmup_epochs=1.0))
    assert changed(old, TrainConfig(max_steps=5)) == ["max_steps: None -> 5"]


def test_the_reference_is_the_baseline_else_the_first_else_the_one_asked_for():
    given = {"dataset": "synthetic"}
    assert compare_methods(METHODS[::-1], (0,), given).reference_of("").name == "baseline"
    assert compare_methods(METHODS[1:], (0,), given).reference_of("").name == "dsl"
    assert compare_methods(METHODS, (0,), given, "dhm").reference_of("").name == "dhm"
    with pytest.raises(UserError, match="unknown reference 'dhn'"):
        compare_methods(METHODS, (0,), given, "dhn")


def test_every_row_of_the_tables_has_a_number_of_the_paper():
    for name, table in TABLES.items():
        for entry in table.entries:
            assert entry.paper and entry.config.epochs > 1, name


@pytest.mark.parametrize(
    ("dataset", "name"),
    [("folder:/data/glyphs100/", "glyphs100"), ("reid-folder:/a/b", "b"), ("synthetic:40", "synthetic-40")],
)
def test_a_data_set_in_short(dataset, name):
    assert dataset_name(dataset) == name


@pytest.mark.parametrize(("table", "dataset"), [("3", "synthetic"), ("1", "reid-synthetic")])
def test_a_table_is_scored_on_a_set_of_its_kind(table, dataset):
    with pytest.raises(ValueError, match=f"dataset is {dataset}: table {table} needs"):
        reproduce_table(table, {"dataset": dataset, "arch": "resnet8", "epochs": 1})


def test_a_changed_table_says_in_its_title_what_was_run():
    title = reproduce_table("corrupt", {"dataset": "synthetic", "arch": "resnet8", "epochs": 1}).title
    assert "here resnet8 on synthetic" in title


@pytest.mark.parametrize("arch", ["resnet20", "densenet-10-4"])
def test_a_table_with_a_branch_that_the_network_lacks_is_refused(arch):
    shrunk = {"arch": arch, "dataset": "synthetic", "epochs": 4}
    with pytest.raises(UserError, match=rf"table 4 .* branch B3, which {arch} does not have \(it has B1, B2\)"):
        reproduce_table("4", shrunk)
    assert len(reproduce_table("4", shrunk, rows=("B0", "B0 + B1 + B2")).arms) == 2


def test_a_shrunk_table_scales_its_warm_up_once():
    """Two epochs of 40, a twentieth, and not a quarter of that again."""
    made = configs(reproduce_table("1", {"epochs": 40, "batch_size": 512, "scale_lr": True}, rows=("resnet32",)))
    config = made["resnet32-dhm"]
    assert (config.warmup_epochs, config.warmup_lr, config.peak_lr) == (2.0, 0.1, 0.4)
    deep = {"epochs": 41, "batch_size": 512, "scale_lr": True}  # has a warm-up of its own, which is scaled
    assert configs(reproduce_table("1", deep, rows=("resnet110",)))["resnet110-dhm"].warmup_epochs == 0.25
    given = {"epochs": 40, "batch_size": 512, "scale_lr": True, "warmup_epochs": 3.0}
    assert configs(reproduce_table("1", given, rows=("resnet32",)))["resnet32-dhm"].warmup_epochs == 3.0


def test_what_methods_differ_in_beside_the_method_is_said():
    shallow = compare_methods(METHODS, (0,), {"dataset": "imagenet", "arch": "resnet18"})
    assert shallow.notes == (
        "the runs differ in more than the method, which also changes their results: crop is scale for baseline, dsl "
        "and shift for dhm, as in the paper",
    )
    fast = compare_methods(METHODS, (0,), {"dataset": "synthetic", "preset": "fast"})
    assert "sampler is binary for baseline, dsl and structural for dhm" in " ".join(fast.notes)
    assert not compare_methods(METHODS[::2], (0,), {"dataset": "synthetic", "preset": "fast"}).notes, "no branches"
    warmer = [METHODS[0], Variant("warm", "dhm", {"lr": 0.2})]
    assert "lr is 0.1 for baseline and 0.2 for warm" in " ".join(compare_methods(warmer, (0,), {}).notes)


def test_a_variant_against_its_own_method_is_what_it_says_it_is():
    rates = [METHODS[2], Variant("warm", "dhm", {"lr": 0.2}), Variant("down", "dhm", {"direction": "top-down"})]
    assert not compare_methods(rates, (0,), {"dataset": "synthetic"}).notes
    deeper = [METHODS[2], Variant("wide", "dhm", {"arch": "wrn-16-8"})]
    said = " ".join(compare_methods(deeper, (0,), {"dataset": "cifar100", "arch": "resnet32"}).notes)
    assert "weight_decay is 0.0001 for dhm and 0.0005 for wide" in said and "arch is" not in said.split("the runs")[1]


def test_weights_of_what_the_baseline_lacks_are_given_to_the_others():
    made = configs(compare_methods(METHODS, (0,), {"mimic_weight": 0.5, "ce_weight": 2.0}))
    assert [made[name].mimic_weight for name in ("baseline", "dsl", "dhm")] == [1, 1, 0.5]
    assert [made[name].ce_weight for name in ("baseline", "dsl", "dhm")] == [1, 2, 2]


def test_the_reference_is_a_baseline_by_its_method_and_not_by_its_name():
    named = [Variant("plain", "baseline", {}), METHODS[2], Variant("not-baseline", "dsl", {})]
    assert compare_methods(named, (0,), {}).reference_of("").name == "plain"
    alone = [Variant("alone", "baseline", {"only_branch": "B1"}), *named]
    assert compare_methods(alone, (0,), {}).reference_of("").name == "plain"
    several = [Variant("x", "dhm", {"lr": 0.2}), *METHODS]
    assert compare_methods(several, (0,), {}, "dhm").reference_of("").name == "dhm"
