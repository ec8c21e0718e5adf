"""Precision, recall, confusions and calibration: against counting by hand, and where there is nothing to count."""

import numpy as np
import pytest
from answers import drawn_answers

from fastdhm.per_class.measures import BINS, Answers, Calibration, Confusion


def given(target, said, confidence=None):
    confidence = np.full(len(target), 0.9) if confidence is None else np.array(confidence)
    return Answers(np.arange(len(target)), np.array(target), np.array(said), confidence, 1 - confidence)


@pytest.mark.parametrize(("K", "images"), [(2, 9), (7, 300), (1000, 500)])
def test_counts_are_those_of_the_dense_matrix(K, images):
    answers = drawn_answers(K, images, empty=(1,))
    confusion, dense_KK = Confusion.of(answers, K), np.zeros((K, K), int)
    for true, said in zip(answers.target_N, answers.said_N, strict=True):
        dense_KK[true, said] += 1
    assert np.array_equal(np.stack([confusion.row(k) for k in range(K)]), dense_KK)
    for counted, expected in (
        (confusion.support_K, dense_KK.sum(1)),
        (confusion.predicted_K, dense_KK.sum(0)),
        (confusion.correct_K, dense_KK.diagonal()),
    ):
        assert counted.tolist() == expected.tolist()
    shown_C = np.array([0, K - 1])
    assert confusion.block(shown_C).sum(1).tolist() == dense_KK[shown_C].sum(1).tolist()
    assert confusion.block(shown_C)[:, :2].tolist() == dense_KK[np.ix_(shown_C, shown_C)].tolist()


def test_shares_of_a_case_done_by_hand():
    """Class 2 has no images, class 3 is never said."""
    confusion = Confusion.of(given([0, 0, 0, 1, 3], [0, 0, 1, 1, 2]), 4)
    np.testing.assert_equal(confusion.recall_K, [2 / 3, 1, np.nan, 0])
    np.testing.assert_equal(confusion.precision_K, [1, 0.5, 0, np.nan])
    np.testing.assert_equal(confusion.f1_K, [0.8, 2 / 3, np.nan, 0])
    assert confusion.mean_recall == pytest.approx(5 / 9)
    assert confusion.hardest().tolist() == [3, 0, 1]
    assert confusion.taken_for() == {0: (1, 1), 3: (2, 1)}


def test_classes_to_show_are_those_that_are_confused_beside_each_other():
    """10 and 900 most, then 900 and 3; 5 and 6 are a group of their own; 7 is one too many."""
    target = [10] * 5 + [900] * 4 + [3] * 2 + [5] * 2 + [7] + list(range(20))
    said = [900] * 5 + [10] * 4 + [900] * 2 + [6] * 2 + [8] + list(range(20))
    confusion = Confusion.of(given(target, said), 1000)
    assert confusion.most_confused(5).tolist() == [10, 900, 3, 5, 6]
    assert confusion.most_confused(1000).tolist() == list(range(1000))


def test_without_mistakes_the_first_classes_are_shown():
    confusion = Confusion.of(given([0, 1], [0, 1]), 100)
    assert confusion.most_confused(3).tolist() == [0, 1, 2]
    assert not len(confusion.confused()) and not confusion.taken_for()


def test_the_surest_mistakes_come_first_and_of_equals_the_earlier():
    answers = given([0, 1, 0, 1], [1, 1, 1, 0], [0.6, 0.99, 0.8, 0.8])
    assert answers.mistakes().tolist() == [2, 3, 0]


def test_samples_are_spread_evenly():
    answers = given([0] * 11, [0] * 11)
    assert answers.even(3).tolist() == [0, 5, 10] and len(answers.even(20)) == 11


def test_calibration_of_a_case_done_by_hand():
    """Two answers of 0.9, one right; one of 1, right: |0.5 - 0.9| * 2 / 3 + 0 / 3."""
    calibration = Calibration.of(given([0, 1, 0], [0, 0, 0], [0.9, 0.9, 1.0]))
    assert calibration.expected_error == pytest.approx(0.8 / 3) and calibration.too_sure == pytest.approx(0.8 / 3)
    assert len(calibration.bins) == BINS and [each.images for each in calibration.filled] == [2, 1]


def test_an_answer_is_in_one_bin_with_its_upper_edge():
    edges = [0.0, 0.2, 1 / 3, 0.6, 2 / 3, 0.8, 1.0]
    calibration = Calibration.of(given([0] * 7, [0] * 7, edges))
    assert sum(each.images for each in calibration.bins) == 7
    assert all(each.low - 1e-9 <= each.confidence <= each.high + 1e-9 for each in calibration.filled)


def test_a_network_that_says_its_accuracy_has_no_calibration_error():
    rng = np.random.default_rng(0)
    confidence_N = rng.uniform(0.5, 1, 200_000)
    said_N = (rng.random(200_000) > confidence_N).astype(int)
    assert Calibration.of(given(np.zeros_like(said_N), said_N, confidence_N)).expected_error < 0.01
