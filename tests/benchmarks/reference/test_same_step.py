"""The judge of training steps: passes the engine in every format, and finds what is wrong with a wrong one."""

import dataclasses

import pytest
import torch

from fastdhm import models
from fastdhm.benchmarks.reference import contender, same_step
from fastdhm.benchmarks.reference.contender import make_config
from fastdhm.benchmarks.reference.same_step import Errors, Yard, images_that_fit, verdict
from fastdhm.engine.fast.graphs import GraphedStep
from fastdhm.errors import UserError

K = 10


def yard(precision="float32", **given):
    return Yard(make_config("resnet8", 16, 8, precision=precision, device="cpu", compile="off", **given), K)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["dhm", "baseline"])
def test_the_engine_is_right(method, precision):
    judge = yard(precision, method=method)
    engine = judge.engine(judge.config)
    assert judge.judge_engine(engine) is None
    assert engine.compiled is False


@pytest.mark.parametrize("wrong", [False, True])
def test_a_captured_step_is_judged_by_its_replays(wrong):
    """A graph stands in: a captured function runs again on the very tensors that it was captured with."""
    judge, replays = yard(), []
    engine = judge.engine(judge.config)
    take = engine.step

    class Graphs:
        def warm_up(self, function):
            return function()

        def capture(self, function):
            def replay():
                replays.append(function)
                loss, terms, correct = function()
                return loss, terms * (1.01 if wrong else 1), correct

            return replay

    engine.step = GraphedStep(take, lambda: None, Graphs())
    fault = judge.judge_engine(engine)
    assert len(replays) == same_step.STEPS + 1 and (fault is not None) is wrong
    assert engine.step.step is take and not engine.step.captured, "what was captured without TF32 is not timed"


def test_the_reference_is_right():
    assert yard().judge_reference() is None


def test_a_single_wrong_tensor_is_found():
    judge = yard()
    engine = judge.engine(judge.config)
    with torch.no_grad():
        engine.run.model.branches["B2"].fc.bias += 0.001  # of a branch, and the smallest there is
    assert "change of branches.B2.fc.bias is off" in judge.judge_engine(engine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_decay": 0.01}, "the change of"),
        ({"momentum": 0.0}, "the change of"),
        ({"nesterov": True}, "the change of"),
        ({"temperature": 2.0}, "the loss is off"),
        ({"label_smoothing": 0.3}, "the loss is off"),
        ({"direction": "top-down"}, ""),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_another_recipe_is_found(change, message):
    judge = yard()
    engine = judge.engine(dataclasses.replace(judge.config, **change))
    if "direction" in change:
        with pytest.raises(RuntimeError, match="must match"):  # other terms, so nothing to compare
            judge.judge_engine(engine)
    else:
        assert message in judge.judge_engine(engine)


def test_a_wrong_gradient_is_found(monkeypatch):
    def scaled(*args, **settings):
        loss, terms_AA = mimic_loss(*args, **settings)
        return 1.02 * loss, terms_AA

    from fastdhm.engine import step

    mimic_loss = step.mimic_loss
    monkeypatch.setattr(step, "mimic_loss", scaled)
    judge = yard()
    assert "is off by 0.02" in judge.judge_engine(judge.engine(judge.config))


def test_small_errors_everywhere_are_found_together():
    yardstick = Errors(0.0, 0.001, {"weight": 0.01})
    assert verdict(Errors(0.0, 0.002, {"weight": 0.09}), yardstick, torch.float32) is None
    assert "all weights is off by 0.004" in verdict(Errors(0.0, 0.004, {"weight": 0.09}), yardstick, torch.float32)


def test_nan_and_changes_of_fixed_tensors_are_found():
    fine = Errors(0.0, 0.0, {"weight": 0.0})
    assert verdict(fine, fine, torch.float32) is None
    for wrong in (
        Errors(float("nan"), 0.0, {}),
        Errors(0.0, float("nan"), {}),
        Errors(0.0, 0.0, {"bias": float("inf")}),
    ):
        assert "is off by" in verdict(wrong, fine, torch.float32)


def test_batches_are_held_to_memory(monkeypatch):
    config = make_config("resnet8", 16, 64, device="cpu")
    model = models.build("resnet8", K)
    per_image = same_step.HELD * 8 * same_step.activations(model, (16, 16))
    monkeypatch.setattr(same_step.machine, "available_bytes", lambda: int(40 * per_image / 0.7) + 1)
    assert images_that_fit(model, config, torch.device("cpu")) == 40
    assert images_that_fit(model, dataclasses.replace(config, batch_size=16), torch.device("cpu")) == 16
    with pytest.raises(UserError, match="--batch-size is 81: a step of resnet8 at 16x16 .* are free; choose fewer"):
        images_that_fit(model, dataclasses.replace(config, batch_size=81), torch.device("cpu"))


def test_activations_are_counted():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten())
    assert same_step.activations(model, (5, 6)) == 3 * 4 * 5 * 6


def test_configs_are_the_papers():
    small, large = make_config("resnet32", None, None), make_config("resnet50", None, None)
    assert (small.image_size, small.batch_size, small.lr, small.crop) == (32, 128, 0.1, "pad")
    assert (large.image_size, large.batch_size, large.crop) == (224, 32, "scale")
    assert make_config("mobilenet", None, None).image_size == (256, 128)
    assert make_config("resnet50", 64, 8).crop == "pad"
    assert contender.random_batch(dataclasses.replace(small, image_size=(8, 4)), K).image_BHWC.shape == (128, 8, 4, 3)
