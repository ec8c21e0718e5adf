"""Schedules as functions of the time in epochs."""

import pytest

from fastdhm.engine.schedule import image_side, learning_rate, mimic_scale


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


def test_a_warmup_longer_than_the_run_is_only_a_warmup():
    assert learning_rate(1, lr=1, epochs=2, schedule="cosine", warmup_epochs=4) == pytest.approx(0.25)


def test_mimic_scale_rises_linearly_then_stays():
    assert [mimic_scale(t, 4) for t in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert mimic_scale(0, 0) == 1


def test_image_side_rises_to_the_whole():
    assert [image_side(t, 28, 0.5) for t in (0, 0.29, 0.31, 0.49, 0.5, 1)] == [14, 14, 20, 20, 28, 28]
    assert [image_side(t, 224, 1.0) for t in (0, 0.59, 0.6, 0.99, 1)] == [112, 112, 168, 168, 224]
    assert image_side(0, 27, 0) == 27
