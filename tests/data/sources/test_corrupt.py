"""Corrupt labels: which, into what, and always the same."""

import numpy as np
import pytest

from fastdhm.data.sources.corrupt import corrupt_targets
from fastdhm.ops import philox

N, K = 20_000, 10
TARGET_N = np.arange(N) % K


def test_the_rule_word_by_word():
    corrupt_N = corrupt_targets(TARGET_N[:200], K, 0.3, 2**40 + 7)
    for i in range(200):
        words = philox.draw(i, 0, philox.STREAM_CORRUPT, 2**40 + 7)
        assert corrupt_N[i] == (words[1] * K // 2**32 if words[0] < 0.3 * 2**32 else TARGET_N[i])


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_as_many_change_as_the_share_and_the_number_of_classes_say(share):
    changed = (corrupt_targets(TARGET_N, K, share, 0) != TARGET_N).mean()
    probability = share * (1 - 1 / K)
    assert abs(changed - probability) <= 4 * (probability * (1 - probability) / N) ** 0.5


def test_random_labels_are_uniform_whatever_the_true_one():
    corrupt_N = corrupt_targets(TARGET_N, K, 1.0, 5)
    counts_KK = np.zeros((K, K))
    np.add.at(counts_KK, (TARGET_N, corrupt_N), 1)
    expected = N / K**2
    assert ((counts_KK - expected) ** 2 / expected).sum() < 99 + 4 * (2 * 99) ** 0.5


def test_a_larger_share_corrupts_the_same_labels_and_more():
    some, more = (corrupt_targets(TARGET_N, K, share, 1) for share in (0.2, 0.5))
    wrong = some != TARGET_N
    assert (more[wrong] == some[wrong]).all() and (more != TARGET_N).sum() > wrong.sum()


def test_it_depends_on_seed_and_index_alone():
    assert (corrupt_targets(TARGET_N[:500], K, 0.5, 1) == corrupt_targets(TARGET_N, K, 0.5, 1)[:500]).all()
    assert (corrupt_targets(TARGET_N, K, 0.5, 1) != corrupt_targets(TARGET_N, K, 0.5, 2)).any()
    assert corrupt_targets(TARGET_N, K, 0.0, 1) is not TARGET_N
