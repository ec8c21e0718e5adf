"""Presets and the scaling of the learning rate: what they come to in a run's config."""

import dataclasses

import pytest

from fastdhm.cli.train import resolve_training
from fastdhm.config import TrainConfig
from fastdhm.engine.settle import settle
from fastdhm.errors import UserError
from fastdhm.recipes import FAST


def config_of(*flags: str) -> TrainConfig:
    return resolve_training(list(flags))[0]


@pytest.mark.parametrize("dataset", [name if name != "folder" else "folder:photos" for name in FAST])
def test_the_fast_preset_is_a_run_that_can_be_done(dataset):
    fast, paper = config_of("--dataset", dataset, "--preset", "fast"), config_of("--dataset", dataset)
    assert (fast.preset, paper.preset) == ("fast", "paper")
    assert fast.epochs < paper.epochs and fast.batch_size > paper.batch_size
    assert fast.warmup_epochs + fast.mimic_warmup < fast.epochs
    assert fast.peak_lr > paper.peak_lr == paper.lr
    assert settle(fast).sampler == "structural"


def test_what_is_given_wins_over_the_preset(tmp_path):
    (tmp_path / "run.yaml").write_text("preset: fast\nepochs: 7\n")
    config = config_of("--dataset", "cifar100", "--config", str(tmp_path / "run.yaml"), "--batch-size", "512")
    assert (config.preset, config.epochs, config.batch_size, config.schedule) == ("fast", 7, 512, "linear")
    assert config.peak_lr == pytest.approx(4 * config.lr)


@pytest.mark.parametrize("method", ["baseline", "dsl"])
def test_a_preset_leaves_the_method_as_it_is(method):
    config = settle(config_of("--method", method, "--preset", "fast"))
    assert (config.method, config.sampler) == (method, "binary")


@pytest.mark.parametrize("dataset", ["cifar100", "imagenet", "folder:photos", "market1501", "synthetic"])
@pytest.mark.parametrize("method", ["dsl", "dhm"])
def test_the_efficient_preset_is_the_recipe_with_one_branch(dataset, method):
    flags = ("--dataset", dataset, "--method", method)
    efficient, one = config_of(*flags, "--preset", "efficient"), config_of(*flags, "--branches", "B2")
    assert (efficient.preset, efficient.branches) == ("efficient", ("B2",))
    assert dataclasses.replace(efficient, preset="paper") == one


def test_the_efficient_preset_has_nothing_to_change_without_branches():
    efficient, paper = (config_of("--method", "baseline", "--preset", preset) for preset in ("efficient", "paper"))
    assert dataclasses.replace(efficient, preset="paper") == paper


def test_folders_have_one_branch_by_default_but_not_where_they_fine_tune():
    assert config_of("--dataset", "folder:photos").branches == ("B2",)
    assert config_of("--dataset", "folder:photos", "--branches", "B1,B2").branches == ("B1", "B2")
    assert config_of("--dataset", "folder:photos", "--preset", "finetune").branches is None


@pytest.mark.parametrize(("preset", "dataset"), [("modern", "imagenet"), ("finetune", "folder:photos")])
@pytest.mark.parametrize("method", ["baseline", "dhm"])
def test_todays_recipes_are_runs_that_can_be_done(preset, dataset, method):
    config = settle(config_of("--dataset", dataset, "--preset", preset, "--method", method))
    assert (config.preset, config.method, config.sampler) == (preset, method, "binary")
    assert config.freeze_epochs + config.warmup_epochs + config.mimic_warmup < config.epochs


def test_the_rate_of_the_modern_recipe_is_torchvisions_and_follows_the_batch():
    for images, peak in ((1024, 0.5), (256, 0.125)):
        config = config_of("--dataset", "imagenet", "--preset", "modern", "--batch-size", str(images))
        assert config.peak_lr == pytest.approx(peak)


def test_a_network_may_be_fine_tuned_from_any_weights():
    config = config_of("--dataset", "folder:photos", "--preset", "finetune", "--weights", "runs/mine")
    assert (config.weights, config.freeze_epochs) == ("runs/mine", 2)


def test_there_is_no_fast_preset_for_people():
    with pytest.raises(UserError, match="preset is fast: there is none for market1501"):
        config_of("--dataset", "market1501", "--preset", "fast")


@pytest.mark.parametrize(
    ("flags", "peak", "warmup", "begin"),
    [
        ([], 0.1, 0, 0),
        (["--scale-lr", "true"], 0.4, 5, 0.1),
        (["--scale-lr", "true", "--epochs", "20"], 0.4, 1, 0.1),
        (["--scale-lr", "true", "--lr", "0.05"], 0.2, 5, 0.05),
        (["--scale-lr", "true", "--warmup-epochs", "3", "--warmup-lr", "0.01"], 0.4, 3, 0.01),
        (["--scale-lr", "true", "--lr-batch-size", "256"], 0.2, 5, 0.1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_larger_batch_scales_the_rate_and_rises_to_it(flags, peak, warmup, begin):
    config = config_of("--dataset", "cifar100", "--batch-size", "512", *flags)
    assert config.peak_lr == pytest.approx(peak)
    assert (config.warmup_epochs, config.warmup_lr, config.warmup) == (warmup, begin, "linear")


def test_a_constant_warm_up_of_the_recipe_stays():
    """Of the very deep: it is there for their own sake."""
    config = config_of("--dataset", "cifar100", "--arch", "resnet110", "--batch-size", "256", "--scale-lr", "true")
    assert (config.peak_lr, config.warmup_epochs, config.warmup, config.warmup_lr) == (0.2, 1, "constant", 0.01)


def test_a_scaled_rate_without_a_warm_up_is_refused():
    config = TrainConfig(batch_size=256, scale_lr=True, warmup_epochs=1)
    with pytest.raises(ValueError, match="scale_lr is True: must be with warmup_epochs"):
        dataclasses.replace(config, warmup_epochs=0)
    assert dataclasses.replace(config, warmup_epochs=0, batch_size=64).peak_lr == 0.05  # a lower one needs none
