"""Schedules as functions of the time in epochs."""

import pytest
import torch

from fastdhm.engine.optim.schedule import (
    describe_falls,
    describe_images,
    full_size_steps,
    image_side,
    learning_rate,
    mimic_scale,
)


def test_step_is_the_papers_cifar_schedule():
    rates = [
        learning_rate(t, lr=0.1, epochs=164, schedule="step", milestones=(81, 122)) for t in (0, 80.99, 81, 122, 163)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])


def test_constant_warmup_is_the_papers_for_very_deep_networks():
    options = {
        "lr": 0.1,
        "epochs": 164,
        "schedule": "step",
        "milestones": (81, 122),
        "warmup_epochs": 1,
        "warmup_lr": 0.01,
    }
    assert [learning_rate(t, **options, warmup="constant") for t in (0, 0.99, 1)] == pytest.approx([0.01, 0.01, 0.1])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_begins_after_the_warmup_and_ends_at_zero(schedule):
    options = {"lr": 0.4, "epochs": 10, "schedule": schedule, "warmup_epochs": 2, "warmup_lr": 0.1}
    assert learning_rate(0, **options) == pytest.approx(0.1)
    assert learning_rate(1, **options) == pytest.approx(0.25)
    assert learning_rate(2, **options) == pytest.approx(0.4)
    assert learning_rate(6, **options) == pytest.approx(0.2)
    assert learning_rate(10, **options) == pytest.approx(0)


def test_constant_stays_after_the_warmup():
    options = {"lr": 0.4, "epochs": 10, "schedule": "constant", "warmup_epochs": 2}
    assert [learning_rate(t, **options) for t in (1, 2, 9.9)] == pytest.approx([0.2, 0.4, 0.4])


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_warm_restarts_are_torchs(factor):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    torchs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5, factor)
    options = {"lr": 0.4, "epochs": 99, "schedule": "warm-restarts", "cycle_epochs": 5, "cycle_factor": factor}
    for quarter in range(4 * 66):
        torchs.step(quarter / 4)
        (expected,) = torchs.get_last_lr()
        assert learning_rate(quarter / 4, **options) == pytest.approx(expected, abs=1e-9), quarter / 4
        later = learning_rate(quarter / 4 + 2, **options, warmup_epochs=2)
        assert later == pytest.approx(expected, abs=1e-9)


def test_a_warmup_longer_than_the_run_is_only_a_warmup():
    assert learning_rate(1, lr=1, epochs=2, schedule="cosine", warmup_epochs=4) == pytest.approx(0.25)


def test_mimic_scale_rises_linearly_then_stays():
    assert [mimic_scale(t, 4) for t in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert mimic_scale(0, 0) == 1


def test_image_side_rises_to_the_whole():
    assert [image_side(t, 28, 0.5) for t in (0, 0.29, 0.31, 0.49, 0.5, 1)] == [14, 14, 20, 20, 28, 28]
    assert [image_side(t, 224, 1.0) for t in (0, 0.59, 0.6, 0.99, 1)] == [112, 112, 168, 168, 224]
    assert image_side(0, 27, 0) == 27


def test_a_step_counts_as_many_full_ones_as_it_has_pixels():
    """Of a run of 100 steps, 30 have a quarter of the pixels, 20 nine sixteenths."""
    work = {step: full_size_steps(step, 100, 32, 0.5) for step in (0, 10, 30, 40, 50, 51, 100)}
    assert work == pytest.approx({0: 0, 10: 2.5, 30: 7.5, 40: 13.125, 50: 18.75, 51: 19.75, 100: 68.75})
    assert [full_size_steps(step, 7, 27, 0.0) for step in (0, 3, 7)] == [0, 3, 7]
    assert full_size_steps(100, 100, 32, 1.0) == pytest.approx(60 / 4 + 40 * 9 / 16)


@pytest.mark.parametrize(
    ("progressive", "said"),
    [
        (0.0, ""),
        (
            0.75,
            "14 pixels until epoch 1.35, 20 pixels until epoch 2.25, then 28; validated at the size reached by then,",
        ),
        (1.0, "14 pixels until epoch 1.8, then 20; validated at the size reached by then, at the end at 28"),
    ],
)
def test_how_images_grow_is_said(progressive, said):
    assert describe_images(3, 28, progressive).startswith(said)
    assert bool(describe_images(3, 28, progressive)) == bool(said)


def test_milestones_that_a_run_ends_before_are_told():
    short = "the learning rate never falls: the first milestone is epoch 81, and the run has 40 epochs"
    assert describe_falls("step", (81, 122), 40) == short
    once = "the learning rate falls no more after epoch 81: the next milestone is epoch 122, and the run has 100 epochs"
    assert describe_falls("step", (81, 122), 100) == once
    assert not describe_falls("step", (81, 122), 164) and not describe_falls("cosine", (81, 122), 40)
