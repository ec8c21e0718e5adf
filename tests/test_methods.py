"""Methods as weight matrices, and samplers as pure functions of a seed and a number. S: side branches."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch

from fastdhm import mimic_loss
from fastdhm.methods import (
    add_teacher,
    branch_sets,
    check,
    drop_mimicking,
    pick_branches,
    scale_mimicking,
    weight_matrix,
)
from fastdhm.ops import philox
from fastdhm.ops.branch_mask import branch_mask

NAMES = ("B1", "B2")


def test_the_three_methods():
    assert weight_matrix("baseline", 3).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert torch.equal(weight_matrix("dsl", 3), torch.eye(3))
    assert torch.equal(weight_matrix("dhm", 3), torch.ones(3, 3))


def test_directions_say_who_teaches_whom():
    """Rows teach, columns learn; B0 is the deepest."""
    assert torch.equal(weight_matrix("dhm", 3, "both"), weight_matrix("dhm", 3))
    assert weight_matrix("dhm", 3, "top-down").tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert torch.equal(weight_matrix("dhm", 3, "bottom-up"), weight_matrix("dhm", 3, "top-down").T)


@pytest.mark.parametrize("method", ["baseline", "dsl", "dhm"])
def test_one_branch_makes_them_all_plain_training(method):
    assert weight_matrix(method, 1).tolist() == [[1]]


def test_the_ramp_scales_only_the_mimicking():
    assert scale_mimicking(weight_matrix("dhm", 2), 0.25).tolist() == [[1, 0.25], [0.25, 1]]
    assert torch.equal(scale_mimicking(weight_matrix("dsl", 2), 0.25), torch.eye(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dhn",), "unknown method 'dhn'; did you mean 'dhm'"),
        (("dhm", "topdown"), "unknown direction 'topdown'; did you mean 'top-down'"),
        (("dhm", "both", "bernouli"), "unknown sampler 'bernouli'; did you mean 'bernoulli'"),
        (("dsl", "bottom-up"), "direction is bottom-up: dsl has no mimicking. .* leave direction out"),
        (("baseline", "both", "structural"), "sampler is structural: baseline has no mimicking"),
    ],
    ids=["method", "direction", "sampler", "direction-of-dsl", "sampler-of-baseline"],
)
def test_unknown_and_useless_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check(*arguments)


@pytest.mark.parametrize("direction", ["both", "top-down"])
@pytest.mark.parametrize("mask", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_a_dropped_branch_loses_its_mimicking_and_keeps_its_labels(direction, mask):
    weights_MM = weight_matrix("dhm", 3, direction)
    kept_MM = drop_mimicking(weights_MM, torch.tensor(mask))
    takes_part = (True, *mask)
    for p in range(3):
        for q in range(3):
            expected = weights_MM[p, q] if p == q or (takes_part[p] and takes_part[q]) else 0
            assert kept_MM[p, q] == expected


def test_dropping_and_the_ramp_commute():
    weights_MM, mask_S = weight_matrix("dhm", 3), torch.tensor([False, True])
    assert torch.equal(
        drop_mimicking(scale_mimicking(weights_MM, 0.5), mask_S),
        scale_mimicking(drop_mimicking(weights_MM, mask_S), 0.5),
    )


@pytest.mark.parametrize("direction", ["both", "top-down", "bottom-up"])
@pytest.mark.parametrize("index", [[0], [0, 1], [0, 2], [0, 1, 3]], ids=str)
def test_a_subset_of_the_branches_has_the_smaller_matrix(direction, index):
    """The engine relies on this when it computes only the branches of the drawn set."""
    whole_MM = weight_matrix("dhm", 4, direction)
    assert torch.equal(whole_MM[index][:, index], weight_matrix("dhm", len(index), direction))


def test_the_default_distribution_has_every_subset_with_equal_probability():
    assert branch_sets(None, NAMES) == {(): 0.25, ("B1",): 0.25, ("B2",): 0.25, ("B1", "B2"): 0.25}
    assert branch_sets(None, ()) == {(): 1}


def test_a_distribution_does_not_depend_on_how_it_is_written():
    sets = branch_sets({"B1+B2": 0.5, "B1": 0.25, "none": 0.25}, NAMES)
    assert sets == {(): 0.25, ("B1",): 0.25, ("B1", "B2"): 0.5}
    other = branch_sets({"none": 0.25, "B2 + B1": 0.5, "B1": 0.25}, NAMES)
    assert list(other.items()) == list(sets.items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"B1": 0.5, "B4": 0.5}, "unknown branch in the set 'B4': 'B4'.*known: B1, B2"),
        ({"B0+B1": 1.0}, "leave B0 out, it is in every set"),
        ({"none+B1": 1.0}, "none means no side branch, write it alone"),
        ({"B1+B2": 0.5, "B2+B1": 0.5}, "write each set once"),
        ({"B1+B1": 1.0}, "each branch once"),
        ({"B1": 0.5, "B2": 0.4}, "sum of the probabilities in branch_sets is 0.9: must be 1"),
        ({"B1": 1.5, "B2": -0.5}, "the probability of 'B1' in branch_sets is 1.5: must be in"),
        ({"B1": math.nan}, "in branch_sets is nan"),
        ({}, "branch_sets is 0: must be 1"),
    ],
    ids=["name", "B0", "none", "set-twice", "branch-twice", "sum", "negative", "nan", "empty"],
)
def test_wrong_distributions_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        branch_sets(given, NAMES)


def test_the_pick_is_by_cumulative_probability():
    sets = branch_sets({"none": 0.2, "B1": 0.3, "B2": 0.0, "B1+B2": 0.5}, NAMES)
    for number in range(300):
        u = philox.draw(0, number, philox.STREAM_BRANCH_SET, 5)[0] / 2**32
        expected = () if u < 0.2 else ("B1",) if u < 0.5 else ("B1", "B2")
        assert pick_branches(sets, 5, number) == expected


def test_a_certain_set_is_always_picked():
    sets = branch_sets({"none": 0.0, "B2": 1 - 1e-7, "B1+B2": 0.0}, NAMES)
    assert {pick_branches(sets, 0, number) for number in range(200)} == {("B2",)}


def chi_square(counts, expected):
    return sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))


def chi_square_limit(freedom):
    """Chi-square is above this once in 30,000 tries (4 standard deviations; Wilson and Hilferty, 1931).

    The seed is fixed, so there is only one try.
    """
    return freedom * (1 - 2 / (9 * freedom) + 4 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.fixture(scope="module")
def picks():
    sets = branch_sets({"none": 0.1, "B1": 0.2, "B2": 0.3, "B1+B2": 0.4}, NAMES)
    return sets, [pick_branches(sets, 20200615, number) for number in range(20_000)]


def test_each_set_has_its_probability(picks):
    sets, drawn = picks
    counts = Counter(drawn)
    statistic = chi_square([counts[subset] for subset in sets], [prob * len(drawn) for prob in sets.values()])
    assert statistic < chi_square_limit(len(sets) - 1)


def test_successive_sets_are_independent(picks):
    sets, drawn = picks
    pairs = Counter(list(pairwise(drawn))[::2])  # pairs that share no draw
    cells = [(first, second) for first in sets for second in sets]
    expected = [sets[first] * sets[second] * (len(drawn) // 2) for first, second in cells]
    assert chi_square([pairs[cell] for cell in cells], expected) < chi_square_limit(len(cells) - 1)


def test_the_bernoulli_mask_of_successive_steps_is_uniform():
    """Three branches at two successive steps make 64 patterns; independent draws make all equally likely."""
    keep_S = torch.full((3,), 0.5)
    masks = [branch_mask(keep_S, 99, step).tolist() for step in range(12_800)]
    patterns = Counter(tuple(first + second) for first, second in zip(masks[::2], masks[1::2], strict=True))
    assert len(patterns) == 64
    assert chi_square(patterns.values(), [100] * 64) < chi_square_limit(63)


def test_samplers_do_not_share_their_draws():
    streams = (philox.STREAM_BRANCH_MASK, philox.STREAM_AUGMENT, philox.STREAM_ORDER, philox.STREAM_BRANCH_SET)
    assert len(set(streams)) == len(streams)


@pytest.mark.parametrize("impl", ["auto", "eager"])
@pytest.mark.parametrize("method", ["baseline", "dsl", "dhm"])
def test_a_teacher_teaches_whoever_learns_and_learns_nothing(method, impl):
    torch.manual_seed(0)
    logits_MBK, taught_BK, T = torch.randn(3, 6, 5, requires_grad=True), torch.randn(6, 5, requires_grad=True), 2.0
    target_B, weights_MM = torch.randint(5, (6,)), weight_matrix(method, 3)
    with_teacher_MM = add_teacher(weights_MM, 0.5)
    assert with_teacher_MM.tolist()[-1] == [0.5 * (w > 0) for w in weights_MM.diag().tolist()] + [0]
    assert not with_teacher_MM[:, -1].any()
    stacked = torch.cat([logits_MBK, taught_BK[None]])
    loss, terms = mimic_loss(stacked, target_B, with_teacher_MM, temperature=T, impl=impl)
    got = torch.autograd.grad(loss, (logits_MBK, taught_BK))
    assert not got[1].any()

    expected = mimic_loss(logits_MBK, target_B, weights_MM, temperature=T, impl="eager")[0]
    target_BK = (taught_BK.detach() / T).softmax(-1)
    for m in range(1 if method == "baseline" else 3):  # Hinton et al. (2015), with KL for the cross-entropy
        kl = torch.nn.functional.kl_div((logits_MBK[m] / T).log_softmax(-1), target_BK, reduction="batchmean")
        torch.testing.assert_close(terms[3, m], T**2 * kl.detach())
        expected = expected + 0.5 * T**2 * kl
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(got[0], torch.autograd.grad(expected, logits_MBK)[0])
