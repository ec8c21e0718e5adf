"""What is drawn: names of policies, and how often each operation and strength comes.

Legend: B views, L levels.
"""

import numpy as np
import pytest

from fastdhm.data.augment.policy import (
    IDENTITY,
    LEVELS,
    OPERATIONS,
    POLICY_OPERATIONS,
    Policy,
    grey_round,
    jitter_rounds,
    parse_policy,
    policy_rounds,
    spread_of,
    strengths,
)  # fmt: skip
from fastdhm.errors import UserError

SIZE = (32, 32)
VIEWS = np.arange(28_000)


def chi_square(counts):
    return ((counts - counts.mean()) ** 2 / counts.mean()).sum()


@pytest.mark.parametrize(
    ("name", "policy"),
    [("none", None), ("trivial", Policy(1, None)), ("rand", Policy(2, 9)), ("rand-3-0", Policy(3, 0))],
)
def test_names(name, policy):
    assert parse_policy(name) == policy


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trival", "unknown augmentation policy 'trival'; did you mean 'trivial'?"),
        ("rand-2", "unknown augmentation policy 'rand-2'; did you mean 'rand'?"),
        ("ta_wide", "augment is ta_wide: here it is called trivial"),
        ("RandAugment", "augment is RandAugment: here it is called rand"),
        ("rand-2-31", "augment is rand-2-31: in rand-N-M, N is 1 to 14 operations and M their strength, 0 to 30"),
        ("rand-0-9", "N is 1 to 14"),
        ("rand-99-9", "N is 1 to 14"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(UserError) as error:
        parse_policy(name)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "jitter"),
    [((), (0, 0, 0, 0)), ((0.4,), (0.4, 0.4, 0.4, 0)), ((1, 2, 3), (1, 2, 3, 0)), ((0, 0, 0, 0.5), (0, 0, 0, 0.5))],
)
def test_jitters(given, jitter):
    assert spread_of(given) == jitter


def test_operations_and_levels_of_trivialaugment_are_uniform():
    """Chi-square at p = 0.001: 14 operations, and 31 levels of those that have a strength."""
    (drawn,) = policy_rounds(Policy(1, None), VIEWS, 3, 0, SIZE)
    assert chi_square(np.bincount(drawn.operation_B, minlength=14)) < 34.5
    table_OL = strengths(Policy(1, None), SIZE)
    for name in ("rotate", "solarize", "contrast"):
        number = POLICY_OPERATIONS.index(name)
        strength = drawn.strength_B[drawn.operation_B == number]
        level = np.abs(np.abs(strength)[:, None] - table_OL[number]).argmin(1)
        assert chi_square(np.bincount(level, minlength=LEVELS)) < 59.7
        assert (strength < 0).mean() == pytest.approx(0 if name == "solarize" else 0.5 * 30 / 31, abs=0.04)


def test_operations_of_randaugment_are_independent():
    first, second = policy_rounds(Policy(2, 9), VIEWS, 3, 0, SIZE)
    pairs = np.bincount(14 * first.operation_B + second.operation_B, minlength=196)
    assert chi_square(pairs) < 262.0  # p = 0.001
    rotations = first.strength_B[first.operation_B == POLICY_OPERATIONS.index("rotate")]
    assert {*np.abs(rotations)} == {9.0}


def test_draws_are_of_seed_epoch_and_view_alone():
    def drawn(views, epoch=3, seed=1):
        rounds = policy_rounds(Policy(2, None), views, epoch, seed, SIZE)
        rounds += [*jitter_rounds((0.4,) * 4, views, epoch, seed), grey_round(0.5, views, epoch, seed)]
        return np.stack([np.stack(each) for each in rounds])

    views = np.arange(100)
    assert np.array_equal(drawn(views)[:, :, 40:60], drawn(views[40:60]))
    assert np.array_equal(drawn(views)[:, :, ::-1], drawn(views[::-1]))
    assert not np.array_equal(drawn(views), drawn(views, epoch=4))
    assert not np.array_equal(drawn(views), drawn(views, seed=2))


def test_jitter_is_torchvisions_but_for_the_place_of_the_hue():
    *colours, hue = jitter_rounds((0.4, 2.0, 0.1, 0.2), VIEWS, 0, 0)
    orders = np.stack([drawn.operation_B for drawn in colours])
    assert chi_square(np.unique(orders, axis=1, return_counts=True)[1]) < 20.5, "six orders, all alike"
    for name, low, high in (("brightness", 0.6, 1.4), ("contrast", 0, 3), ("colour", 0.9, 1.1)):
        of_it = np.stack([drawn.operation_B for drawn in colours]) == OPERATIONS.index(name)
        factor = 1 + np.stack([drawn.strength_B for drawn in colours])[of_it]
        assert len(factor) == len(VIEWS)
        assert (factor.min(), factor.max()) == pytest.approx((low, high), abs=0.001)
        assert factor.mean() == pytest.approx((low + high) / 2, abs=0.02)
    assert np.unique(hue.strength_B) == pytest.approx(np.linspace(-0.2, 0.2, 15))
    assert (hue.operation_B == IDENTITY).mean() == pytest.approx(1 / 15, abs=0.01)


def test_as_many_turn_grey_as_asked_for():
    assert (grey_round(0.2, VIEWS, 0, 0).operation_B != IDENTITY).mean() == pytest.approx(0.2, abs=0.01)
    assert (grey_round(1.0, VIEWS, 0, 0).operation_B != IDENTITY).all()
