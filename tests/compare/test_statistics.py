"""Means, spreads and intervals, against values worked out by hand and by scipy's own paired test."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from fastdhm.compare.statistics import Difference, Summary, paired_difference, pairs_needed, summarize


def test_mean_and_sample_standard_deviation():
    assert summarize([2.0, 4.0, 9.0]) == Summary(3, 5.0, math.sqrt(13))  # (9 + 1 + 16) / 2
    assert summarize([7.5]) == Summary(1, 7.5, None)
    assert summarize([]) is None


def test_an_interval_by_hand():
    """Differences -1, -2, -3: mean -2, standard error 1 / sqrt(3), t(0.975, 2) = 4.302653."""
    found = paired_difference({0: 9.0, 1: 8.0, 2: 7.0}, {0: 10.0, 1: 10.0, 2: 10.0})
    half = 4.302652729911275 / math.sqrt(3)
    assert (found.n, found.mean) == (3, -2.0)
    assert (found.low, found.high) == pytest.approx((-2 - half, -2 + half), rel=1e-9)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_interval_is_that_of_a_paired_t_test(confidence):
    ours, reference = [23.5, 23.7, 24.4, 22.9, 23.1], [24.8, 24.5, 24.6, 24.9, 24.2]
    found = paired_difference(dict(enumerate(ours)), dict(enumerate(reference)), confidence)
    theirs = ttest_rel(ours, reference)
    interval = theirs.confidence_interval(confidence)
    assert (found.low, found.high, found.p_value) == pytest.approx((interval.low, interval.high, theirs.pvalue))


def test_only_seeds_that_both_have_are_paired():
    found = paired_difference({0: 1.0, 1: 2.0, 5: 99.0}, {1: 1.0, 0: 0.5, 7: -99.0})
    assert (found.n, found.mean) == (2, 0.75)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_one_pair_has_no_interval():
    assert paired_difference({3: 1.0}, {3: 2.0}) == Difference(1, -1.0, None, None, None)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_differences_without_spread_have_no_interval(shift):
    found = paired_difference({0: 1.0 + shift, 1: 2.0 + shift}, {0: 1.0, 1: 2.0})
    assert found == Difference(2, shift, None, None, None)


@pytest.mark.parametrize("images", [7, 100, 3333, 10_000])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_same_number_of_images_is_the_same_difference_whatever_is_rounded(images, seeds):
    """Errors in percent of counts: two more right in every pair, each time rounded another way."""
    for right in range(1, images - seeds, max(1, images // 50)):
        reference = {seed: 100 * (1 - (right + seed - 1) / images) for seed in range(seeds)}
        ours = {seed: 100 * (1 - (right + seed + 1) / images) for seed in range(seeds)}
        found = paired_difference(ours, reference)
        assert (found.low, found.high, found.p_value) == (None, None, None)
        assert found.mean == pytest.approx(-200 / images)


def test_differences_of_one_image_more_are_not_the_same():
    found = paired_difference({0: 1.0, 1: 1.0 + 100 / 1e9}, {0: 0.0, 1: 0.0})
    assert found.low < found.mean < found.high and 0 < found.p_value < 1


@pytest.mark.parametrize("confidence", [1e-9, 0.9999, 1 - 2**-53])
def test_an_interval_is_finite_at_any_confidence(confidence):
    found = paired_difference({0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.0}, confidence)
    assert math.isfinite(found.low) and math.isfinite(found.high) and found.low < found.high


@pytest.mark.parametrize(("effect", "pairs"), [(2.0, 5), (1.0, 10), (0.8, 15), (0.5, 34), (0.2, 199)])
def test_pairs_needed_are_those_of_the_books(effect, pairs):
    """Paired t-test, two sides, 5%, power 0.8: the tables of Cohen and of G*Power."""
    assert pairs_needed(effect) == pairs_needed(-effect) == pairs


def test_pairs_needed_find_the_difference_as_often_as_they_say():
    draw = np.random.default_rng(0).normal(loc=0.7, size=(20_000, pairs_needed(0.7)))
    found = ttest_1samp(draw, 0, axis=1).pvalue < 0.05
    assert 0.8 < found.mean() < 0.86


def test_only_a_difference_that_is_not_found_needs_pairs():
    sure = paired_difference({0: 1.0, 1: 1.1, 2: 0.9}, dict.fromkeys(range(3), 0.0))
    unsure = paired_difference({0: 2.0, 1: -1.0, 2: 0.5}, dict.fromkeys(range(3), 0.0))
    assert sure.low > 0 and sure.n_needed is None
    assert unsure.low < 0 < unsure.high and unsure.n_needed == pairs_needed(0.5 / 1.5) > 3


def test_no_number_of_pairs_finds_nothing():
    assert pairs_needed(0.0) is None and pairs_needed(1e-9) is None
    assert paired_difference({0: 1.0, 1: -1.0}, {0: 0.0, 1: 0.0}).n_needed is None
