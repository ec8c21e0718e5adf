"""What a network's answers come to: precision and recall of each class, confusions, calibration.

Legend: N images, K classes, P pairs of classes that occur, C classes that are shown.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastdhm.errors import UserError

BINS = 15  # of confidence, as in Guo et al., "On Calibration of Modern Neural Networks" (2017)


class NoAnswer(UserError):
    """Logits are NaN or infinite."""


@dataclass(frozen=True)
class Answers:
    """What one network, or one branch, says of each image, in the order of the data set."""

    index_N: np.ndarray
    """int64: the image's number in its data set."""
    target_N: np.ndarray
    """int64: its class."""
    said_N: np.ndarray
    """int64: the class that the network names."""
    confidence_N: np.ndarray
    """float64: the probability that the network gives to this class."""
    true_N: np.ndarray
    """float64: the probability that it gives to the image's own class."""

    def mistakes(self) -> np.ndarray:
        """Which answers are wrong, the surest first."""
        wrong_W = np.flatnonzero(self.said_N != self.target_N)
        return wrong_W[np.argsort(-self.confidence_N[wrong_W], kind="stable")]

    def even(self, count: int) -> np.ndarray:
        """``count`` of the answers, evenly spread over the data set; all if there are fewer."""
        return np.unique(np.linspace(0, len(self.index_N) - 1, min(count, len(self.index_N))).round().astype(int))


@dataclass(frozen=True)
class Confusion:
    """How many images of each class were taken for which; a million pairs that never occur cost nothing."""

    num_classes: int
    true_P: np.ndarray
    said_P: np.ndarray
    count_P: np.ndarray

    @classmethod
    def of(cls, answers: Answers, num_classes: int) -> "Confusion":
        """The pairs in the order of their classes."""
        pair_P, count_P = np.unique(answers.target_N * num_classes + answers.said_N, return_counts=True)
        return cls(num_classes, *np.divmod(pair_P, num_classes), count_P)

    @cached_property
    def support_K(self) -> np.ndarray:
        """Images of each class."""
        return self._counted(self.true_P)

    @cached_property
    def predicted_K(self) -> np.ndarray:
        """Images that were taken for each class."""
        return self._counted(self.said_P)

    @cached_property
    def correct_K(self) -> np.ndarray:
        """Images of each class that were taken for it."""
        return self._counted(self.true_P, self.true_P == self.said_P)

    @property
    def recall_K(self) -> np.ndarray:
        """The share of a class's images that were taken for it; NaN for a class without images."""
        return _share(self.correct_K, self.support_K)

    @property
    def precision_K(self) -> np.ndarray:
        """The share of the images that were taken for a class that are of it; NaN where none was."""
        return _share(self.correct_K, self.predicted_K)

    @property
    def f1_K(self) -> np.ndarray:
        """The harmonic mean of both, 0 where no image is right; NaN for a class without images."""
        both_K = np.where(self.support_K > 0, self.support_K + self.predicted_K, 0)
        return _share(2 * self.correct_K, both_K)

    @property
    def mean_recall(self) -> float:
        """Over the classes that have images: each counts the same, however many these are."""
        return float(np.nanmean(self.recall_K))

    def hardest(self) -> np.ndarray:
        """The classes that have images, the lowest recall first."""
        order_K = np.argsort(np.nan_to_num(self.recall_K, nan=2.0), kind="stable")
        return order_K[: np.count_nonzero(self.support_K)]

    def confused(self) -> np.ndarray:
        """Which pairs are of two different classes, the most frequent first."""
        wrong_W = np.flatnonzero(self.true_P != self.said_P)
        return wrong_W[np.argsort(-self.count_P[wrong_W], kind="stable")]

    def taken_for(self) -> dict[int, tuple[int, int]]:
        """For each class with mistakes, the other class that its images were most often taken for, and how often."""
        most: dict[int, tuple[int, int]] = {}
        for p in self.confused():
            most.setdefault(int(self.true_P[p]), (int(self.said_P[p]), int(self.count_P[p])))
        return most

    def row(self, true: int) -> np.ndarray:
        """A row of the matrix: how many images of that class were taken for each."""
        here_P, row_K = slice(*np.searchsorted(self.true_P, (true, true + 1))), np.zeros(self.num_classes, np.int64)
        row_K[self.said_P[here_P]] = self.count_P[here_P]
        return row_K

    def block(self, shown_C: np.ndarray) -> np.ndarray:
        """The rows and columns of these classes, ``[C, C + 1]``: the last column is of all other classes."""
        rows_CK = np.stack([self.row(int(k)) for k in shown_C])
        inside_CC = rows_CK[:, shown_C]
        return np.concatenate([inside_CC, (rows_CK.sum(1) - inside_CC.sum(1))[:, None]], axis=1)

    def most_confused(self, most: int) -> np.ndarray:
        """At most so many classes to show: all of them, or those of the most frequent mistakes, in groups that are
        taken for one another."""
        if self.num_classes <= most:
            return np.arange(self.num_classes)
        groups: dict[int, list[int]] = {}  # class -> the group that it is in, the same list for all of these
        for p in self._either_way():
            one, other = sorted((groups.get(int(k), [int(k)]) for k in p), key=len, reverse=True)
            new = sum(int(k) not in groups for k in p)
            if len(groups) + new > most:
                break
            if one is not other:
                one.extend(other)
                groups.update(dict.fromkeys(one, one))
        return np.array(list(dict.fromkeys(k for group in groups.values() for k in group)) or range(most))

    def _either_way(self) -> np.ndarray:
        """The pairs of different classes that are confused, in whichever direction, the most frequent first."""
        wrong_W = np.flatnonzero(self.true_P != self.said_P)
        ends_W2 = np.sort(np.stack([self.true_P[wrong_W], self.said_P[wrong_W]], axis=1), axis=1)
        pair_Q, place_W = np.unique(ends_W2[:, 0] * self.num_classes + ends_W2[:, 1], return_inverse=True)
        count_Q = np.bincount(place_W.reshape(-1), self.count_P[wrong_W], len(pair_Q))
        order_Q = np.argsort(-count_Q, kind="stable")
        return np.stack(np.divmod(pair_Q[order_Q], self.num_classes), axis=1)

    def _counted(self, class_P: np.ndarray, which_P: np.ndarray | slice = slice(None)) -> np.ndarray:
        counts_K = np.zeros(self.num_classes, np.int64)
        np.add.at(counts_K, class_P[which_P], self.count_P[which_P])
        return counts_K


@dataclass(frozen=True)
class Bin:
    """The answers of a range of confidence, above ``low`` and up to ``high``; the means are NaN if there are none."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How far a network is right as often as it says."""

    bins: tuple[Bin, ...]

    @classmethod
    def of(cls, answers: Answers) -> "Calibration":
        """The reliability of all answers, in bins of equal width."""
        place_N = np.clip(np.ceil(answers.confidence_N * BINS).astype(np.int64) - 1, 0, BINS - 1)
        images_B = np.bincount(place_N, minlength=BINS)
        confidence_B = _share(np.bincount(place_N, answers.confidence_N, BINS), images_B)
        accuracy_B = _share(np.bincount(place_N, answers.said_N == answers.target_N, BINS), images_B)
        columns = zip(images_B.tolist(), confidence_B.tolist(), accuracy_B.tolist(), strict=True)
        return cls(tuple(Bin(b / BINS, (b + 1) / BINS, *values) for b, values in enumerate(columns)))

    @property
    def filled(self) -> list[Bin]:
        """The bins that have answers."""
        return [each for each in self.bins if each.images]

    @property
    def expected_error(self) -> float:
        """The mean over all answers of ``|accuracy - confidence|`` of their bin."""
        total = sum(each.images for each in self.filled)
        return sum(each.images * abs(each.accuracy - each.confidence) for each in self.filled) / total

    @property
    def too_sure(self) -> float:
        """The mean confidence less the accuracy: above 0 if the network says too much."""
        total = sum(each.images for each in self.filled)
        return sum(each.images * (each.confidence - each.accuracy) for each in self.filled) / total


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
