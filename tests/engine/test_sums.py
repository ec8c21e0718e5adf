"""The sums of an epoch: means, intervals, and a loss that broke."""

import pytest
import torch

from fastdhm.engine.sums import NonFiniteLoss, TrainingSums
from fastdhm.methods import weight_matrix

NAMES = ("B0", "B1")
DHM = weight_matrix("dhm", 2)


def step(sums, number, loss=2.0, terms_MM=None, correct_M=(3.0, 1.0), weights_MM=DHM, active=("B1",)):
    terms_MM = torch.tensor([[1.0, 0.5], [0.25, 1.0]]) if terms_MM is None else terms_MM
    correct_M = torch.tensor(correct_M, dtype=torch.float64)
    sums.add(number, 4, torch.tensor(loss), terms_MM, correct_M, weights_MM, active)


def test_means_and_errors_of_an_epoch_and_of_an_interval():
    sums = TrainingSums(NAMES, torch.device("cpu"))
    step(sums, 1, loss=2.0)
    assert sums.read_interval().scalars(NAMES)["loss"] == 2
    step(sums, 2, loss=4.0, correct_M=(4.0, 4.0))
    interval = sums.read_interval().scalars(NAMES)
    assert interval["loss"] == 4
    assert interval["train_error/B0"] == 0
    epoch = sums.read().scalars(NAMES)
    assert epoch == {
        "loss": 3, "ce/B0": 1, "mimic/B0->B1": 0.5, "mimic/B1->B0": 0.25, "ce/B1": 1,
        "train_error/B0": pytest.approx(12.5), "train_error/B1": pytest.approx(37.5),
    }  # fmt: skip
    sums.reset()
    assert sums.read().steps == 0


def test_terms_without_weight_are_not_logged():
    sums = TrainingSums(NAMES, torch.device("cpu"))
    step(sums, 1, weights_MM=weight_matrix("dsl", 2))
    assert set(sums.read().scalars(NAMES)) == {"loss", "ce/B0", "ce/B1", "train_error/B0", "train_error/B1"}


def test_means_are_over_the_steps_in_which_a_term_took_part():
    """Three kinds of a step: both branches, B1 with labels only, B1 not computed at all."""
    sums = TrainingSums(("B0", "B1", "B2"), torch.device("cpu"))
    whole_MM = torch.arange(9.0).view(3, 3)
    step(sums, 1, terms_MM=whole_MM, correct_M=(4.0, 2.0, 0.0), weights_MM=torch.ones(3, 3), active=("B1", "B2"))
    labels_MM = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    step(sums, 2, terms_MM=whole_MM + 10, correct_M=(4.0, 4.0, 2.0), weights_MM=labels_MM, active=("B1", "B2"))
    step(sums, 3, terms_MM=torch.tensor([[3.0, 5], [7, 9]]), correct_M=(1.0, 1.0), active=("B2",))
    scalars = sums.read().scalars(sums.names)
    assert scalars == {
        "loss": 2, "ce/B0": (0 + 10 + 3) / 3, "ce/B1": (4 + 14) / 2, "ce/B2": pytest.approx((8 + 18 + 9) / 3),
        "mimic/B0->B1": 1, "mimic/B1->B0": 3, "mimic/B1->B2": 5, "mimic/B2->B1": 7,
        "mimic/B0->B2": pytest.approx((2 + 12 + 5) / 3), "mimic/B2->B0": pytest.approx((6 + 16 + 7) / 3),
        "train_error/B0": 25, "train_error/B1": 25, "train_error/B2": 75,
    }  # fmt: skip


def test_what_never_took_part_is_not_logged_and_breaks_nothing():
    """A term without weight may be NaN; a branch that no step of the interval computed has no error."""
    sums = TrainingSums(NAMES, torch.device("cpu"))
    step(sums, 1, terms_MM=torch.tensor([[1.0, torch.nan], [torch.nan, 2.0]]), weights_MM=torch.eye(2))
    assert sums.read_interval().scalars(NAMES)["ce/B1"] == 2
    step(sums, 2, terms_MM=torch.ones(1, 1), correct_M=(2.0,), weights_MM=torch.ones(1, 1), active=())
    assert sums.read_interval().scalars(NAMES) == {"loss": 2, "ce/B0": 1, "train_error/B0": 50}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_loss_names_its_first_step_and_the_terms(bad):
    sums = TrainingSums(NAMES, torch.device("cpu"))
    step(sums, 7)
    step(sums, 8, loss=bad, terms_MM=torch.tensor([[1.0, bad], [0.0, bad]]))
    step(sums, 9, loss=bad, terms_MM=torch.tensor([[1.0, bad], [0.0, bad]]))
    with pytest.raises(NonFiniteLoss, match="not finite since step 8: ce/B1, mimic/B0->B1"):
        sums.read()
