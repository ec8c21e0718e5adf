"""The rules over several fields of a run: each is told with the value, and kept when the other field is right."""

import re

import pytest

from fastdhm.config import TrainConfig
from fastdhm.config.run import TOGETHER

WRONG = {
    "corrupt-seed": ({"corrupt_seed": 3}, {"corrupt_labels": 0.1}, "corrupt_seed is 3: must be left out"),
    "no-mix": ({"mix_off_epochs": 3}, {"cutmix": 1.0}, "mix_off_epochs is 3: must be 0 without mixup and cutmix"),
    "never-mixed": ({"mix_off_epochs": 5, "mixup": 0.2, "epochs": 5}, {"epochs": 6}, "must be below epochs (5)"),
    "balanced-and-weighed": (
        {"balanced_sampling": True, "class_weights": "auto"}, {"class_weights": {"cat": 2.0}},
        "balanced_sampling is True: must be false with class_weights auto",
    ),
    "balanced-and-corrupt": (
        {"balanced_sampling": True, "corrupt_labels": 0.1}, {"corrupt_labels": 0.0},
        "balanced_sampling is True: must be false with corrupt_labels",
    ),
    "balanced-and-repeated": (
        {"balanced_sampling": True, "repeats": 3}, {"repeats": 1}, "must be false with repeats (3): it repeats",
    ),
    "lone-method": ({"only_branch": "B1"}, {"method": "baseline"}, "only_branch is B1: must be left out with dhm"),
    "lone-weights": (
        {"only_branch": "B1", "method": "baseline", "weights": "imagenet"}, {"only_branch": "B0"},
        "must be B0 or left out: the weights (imagenet) are of a whole trunk",
    ),
    "frozen-all": (
        {"freeze_epochs": 5, "epochs": 5, "weights": "imagenet"}, {"epochs": 6},
        "freeze_epochs is 5: must be below epochs (5)",
    ),
    "frozen-new": ({"freeze_epochs": 5}, {"weights": "imagenet"}, "must be 0 without weights"),
    "no-draws": ({"sample_every": "step"}, {"sampler": "structural"}, "sample_every is step: must be null"),
    "no-coin": ({"keep_prob": 0.3}, {"sampler": "bernoulli"}, "must be left out: only bernoulli uses it"),
    "no-sets": ({"branch_sets": {"B1": 1.0}}, {"sampler": "structural"}, "must be left out: only structural"),
    "one-gradient": ({"grad_cosine": 5, "method": "baseline"}, {"method": "dsl"}, "grad_cosine is 5: must be 0"),
    "no-branches": ({"grad_cosine": 5, "branches": ()}, {"branches": ("B1",)}, "grad_cosine is 5: must be 0"),
    "parts": ({"accumulate": 3, "batch_size": 64}, {"batch_size": 66}, "must be a divisor of batch_size (64)"),
    "repeats": ({"repeats": 9, "batch_size": 8}, {"batch_size": 9}, "repeats is 9: must be at most batch_size (8)"),
    "no-warm-up": (
        {"scale_lr": True, "batch_size": 512}, {"warmup_epochs": 5.0}, "scale_lr is True: must be with warmup_epochs",
    ),
    "lr": ({"lr": 1e39}, {"lr": 1e38}, "must be below 3.4e+38, float32's largest number: set a smaller one"),
    "scaled-lr": (
        {"lr": 1e38, "scale_lr": True, "batch_size": 1024, "warmup_epochs": 1.0}, {"lr": 1e37},
        "after scale_lr (1024 / 128 of it): set a smaller one",
    ),
    "no-momentum": ({"nesterov": True, "momentum": 0.0}, {"momentum": 0.9}, "must be false when momentum is 0"),
    "not-sgd": ({"nesterov": True, "optimizer": "amsgrad"}, {"nesterov": False}, "must be false: only sgd has it"),
    "not-amsgrad": (
        {"betas": (0.8, 0.9)}, {"optimizer": "amsgrad"}, "must be left out: only amsgrad, adamw and muon use it",
    ),
    "arguments-of-sgd": ({"optimizer_args": "eps=1"}, {"optimizer": "adamw"}, "must be left out: sgd's have flags"),
    "graph-and-count": (
        {"cuda_graphs": True, "optimizer": "muon"}, {"optimizer": "adamw"}, "must be false with muon: its steps count",
    ),
    "cycle": (
        {"cycle_epochs": 5.0}, {"schedule": "warm-restarts"}, "cycle_epochs is 5.0: must be left out: only the sched",
    ),
    "factor": (
        {"cycle_factor": 2.0}, {"schedule": "warm-restarts"}, "cycle_factor is 2.0: must be left out: only the sched",
    ),
    "free-and-schedule": (
        {"optimizer": "schedulefree:sgd"}, {"schedule": "constant"}, "schedule is step: must be constant with schedule",
    ),
    "free-and-average": (
        {"optimizer": "schedulefree:sgd", "ema": 0.9, "schedule": "constant"}, {"ema": 0.0}, "must be 0 with schedule",
    ),
    "loss-and-teacher": (
        {"loss": "linear", "teacher": "a"}, {"loss": "auto"}, "loss is linear: must be logits or auto with a teacher",
    ),
    "loss-and-impl": ({"loss": "linear", "impl": "eager"}, {"impl": "cpp"}, "must be logits or auto with impl eager"),
    "loss-and-cosine": (
        {"loss": "linear", "grad_cosine": 5}, {"loss": "logits"}, "must be logits or auto with grad_cosine",
    ),
    "loss-and-labels": (
        {"loss": "linear", "ce_weight": 0.0}, {"ce_weight": 0.1}, "must be logits or auto with ce_weight 0",
    ),
    "graph-and-average": ({"cuda_graphs": True, "ema": 0.9}, {"ema": 0.0}, "must be false with ema"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_together_is_told(case):
    values, mended, message = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig(**values)
    TrainConfig(**(values | mended))


def test_every_rule_has_its_case():
    words = " ".join(message for _, _, message in WRONG.values())
    starts = [re.split(r"[:({,]", rule)[0].strip() for _, _, rule in TOGETHER]
    assert not [start for start in starts if start not in words]


def test_the_rate_at_the_peak():
    assert TrainConfig(lr=0.1, batch_size=256).peak_lr == 0.1
    assert TrainConfig(lr=0.1, batch_size=256, scale_lr=True, warmup_epochs=1.0).peak_lr == 0.2
