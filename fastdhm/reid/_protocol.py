"""Which gallery entries are matches of a query: the single-query protocol of Market-1501.

Legend: Q queries, G gallery, P pairs of a query and a gallery entry of its identity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

JUNK = -1  # the identity of a bad detection: neither right nor wrong, so every ranking leaves it out


@dataclass(frozen=True)
class Labels:
    """Identity and camera of every query and every gallery entry, ``int64``."""

    query_ids_Q: np.ndarray
    gallery_ids_G: np.ndarray
    query_cams_Q: np.ndarray
    gallery_cams_G: np.ndarray

    @classmethod
    def checked(cls, query_ids_Q, gallery_ids_G, query_cams_Q, gallery_cams_G) -> Labels:
        """From tensors, arrays or lists.

        Raises:
            ValueError: labels that are not whole numbers or not one-dimensional, identities and cameras of different
                lengths, or no query or no gallery entry at all.
        """
        given = {
            "query_ids_Q": query_ids_Q,
            "gallery_ids_G": gallery_ids_G,
            "query_cams_Q": query_cams_Q,
            "gallery_cams_G": gallery_cams_G,
        }
        labels = cls(**{name: _whole_numbers(name, values) for name, values in given.items()})
        for side in ("query", "gallery"):
            (ids_name, ids), (cams_name, cams) = [
                (name, values) for name, values in vars(labels).items() if name.startswith(side)
            ]
            if len(ids) != len(cams):
                raise ValueError(
                    f"{ids_name} has {len(ids)} entries, but {cams_name} has {len(cams)}: must have the same number"
                )
            if not len(ids):
                raise ValueError(f"{ids_name} is empty: must have at least one {side} image")
        return labels

    @property
    def num_queries(self) -> int:
        return len(self.query_ids_Q)

    @property
    def num_gallery(self) -> int:
        return len(self.gallery_ids_G)


@dataclass(frozen=True)
class Pairs:
    """The gallery entries with a query's identity, for some queries; in order of query, then of gallery."""

    query_P: np.ndarray  # counted from the first of these queries
    gallery_P: np.ndarray
    same_camera_P: np.ndarray  # bool

    @property
    def matches(self) -> tuple[np.ndarray, np.ndarray]:
        """Query and gallery index of the matches: same identity, another camera."""
        return self.query_P[~self.same_camera_P], self.gallery_P[~self.same_camera_P]

    @property
    def left_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Query and gallery index of entries that the query's ranking leaves out: same identity, same camera."""
        return self.query_P[self.same_camera_P], self.gallery_P[self.same_camera_P]


class SameIdentity:
    """Finds the pairs of any consecutive queries, without a Q x G table."""

    def __init__(self, labels: Labels):
        self.labels = labels
        self._order_G = np.argsort(labels.gallery_ids_G, kind="stable")
        self._sorted_ids_G = labels.gallery_ids_G[self._order_G]
        self.junk_G = np.flatnonzero(labels.gallery_ids_G == JUNK)  # no ranking contains these

    def pairs(self, first: int, last: int) -> Pairs:
        """The pairs of queries ``first``, ..., ``last - 1``."""
        ids_Q = self.labels.query_ids_Q[first:last]
        start_Q = np.searchsorted(self._sorted_ids_G, ids_Q, side="left")
        end_Q = np.searchsorted(self._sorted_ids_G, ids_Q, side="right")
        count_Q = np.where(ids_Q == JUNK, 0, end_Q - start_Q)
        query_P = np.repeat(np.arange(len(ids_Q)), count_Q)
        within_P = np.arange(len(query_P)) - np.repeat(np.cumsum(count_Q) - count_Q, count_Q)
        gallery_P = self._order_G[np.repeat(start_Q, count_Q) + within_P]
        same_camera_P = self.labels.query_cams_Q[first:last][query_P] == self.labels.gallery_cams_G[gallery_P]
        return Pairs(query_P, gallery_P, same_camera_P)


def _whole_numbers(name: str, values) -> np.ndarray:
    values = np.asarray(values.cpu() if hasattr(values, "cpu") else values)
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}: must have one dimension, a number for each image")
    if values.size and values.dtype.kind not in "iu":
        raise ValueError(f"{name} is {values.dtype}: must be whole numbers")
    return values.astype(np.int64)
