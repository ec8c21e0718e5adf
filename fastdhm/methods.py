"""Training methods as weight matrices over the terms of the mimicking loss, and the samplers that drop branches.

A sampler is a pure function of a seed and the number of a draw (an epoch or a step). So a resumed run needs no state of
it, and every process of a run draws the same.

Legend: M branches (B0, the main one and the deepest, then B1, B2, ...), S = M - 1 side branches.
"""

import math
from collections.abc import Iterable, Mapping
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdhm.config.method import TOLERANCE
from fastdhm.config.rules import NOT_NEGATIVE, SHARE
from fastdhm.errors import UserError, unknown
from fastdhm.ops import philox

METHODS = ("baseline", "dsl", "dhm")
DIRECTIONS = ("both", "top-down", "bottom-up")
# sampler -> how often it draws by default; App. D draws once per epoch
SAMPLERS = {"binary": "epoch", "bernoulli": "epoch", "structural": "step"}
NO_BRANCH = "none"


def weight_matrix(
    method: str, num_branches: int, direction: str = "both", ce_weight: float = 1.0, mimic_weight: float = 1.0
) -> Tensor:
    """The weights of ``loss = sum(W * terms)`` (Eq. 1-9): ``W[p, q]`` for teacher p and student q, float32 ``[M, M]``.

    ``baseline`` trains the main branch alone. ``dsl`` trains every branch on the labels. ``dhm`` trains every branch on
    the labels and on other branches (4.3.1): on all of them (``both``), on the deeper ones (``top-down``: W[p, q] = 1
    for p <= q) or on the shallower ones (``bottom-up``, the transpose).

    ``ce_weight`` is lambda, the weight of the side branches' cross-entropies (Eq. 8); the weight of the main branch's
    is 1. ``mimic_weight`` is mu, the weight of the mimicking terms (Eq. 9). Both are 1 in the paper's experiments.

    Raises:
        ValueError: an unknown method or direction, a direction or weight that the method does not use, a weight that
            is negative or not finite, or fewer than one branch.
    """
    check(method, direction, ce_weight=ce_weight, mimic_weight=mimic_weight)
    if num_branches < 1:
        raise ValueError(f"num_branches is {num_branches}: must be 1 or more, the main branch included")
    if method == "baseline":
        weights_MM = torch.zeros(num_branches, num_branches)
        weights_MM[0, 0] = 1
        return weights_MM
    ce_MM = torch.diag(torch.tensor([1.0, *[ce_weight] * (num_branches - 1)]))
    if method == "dsl":
        return ce_MM
    mimic_MM = mimic_weight * (1 - torch.eye(num_branches))
    return ce_MM + {"both": mimic_MM, "top-down": mimic_MM.triu(), "bottom-up": mimic_MM.tril()}[direction]


def check(
    method: str, direction: str = "both", sampler: str = "binary", ce_weight: float = 1.0, mimic_weight: float = 1.0
) -> None:
    """``ValueError`` if a value is unknown or out of range, or if the method does not use it."""
    for kind, value, known in (
        ("method", method, METHODS),
        ("direction", direction, DIRECTIONS),
        ("sampler", sampler, SAMPLERS),
    ):
        if value not in known:
            raise unknown(kind, value, known)
    for kind, weight in (("ce_weight", ce_weight), ("mimic_weight", mimic_weight)):
        if not NOT_NEGATIVE.holds(weight):
            raise UserError(f"{kind} is {weight}: must be {NOT_NEGATIVE.words}")
    mimicking = (("direction", direction, "both"), ("sampler", sampler, "binary"), ("mimic_weight", mimic_weight, 1))
    for kind, given, usual in mimicking:
        if method != "dhm" and given != usual:
            raise UserError(f"{kind} is {given}: {method} has no mimicking. Set the method to dhm, or leave {kind} out")
    if method == "baseline" and ce_weight != 1:
        raise UserError(
            f"ce_weight is {ce_weight}: baseline has no side branches. Set the method to dsl or dhm, or leave "
            "ce_weight out"
        )


def scale_mimicking(weights_MM: Tensor, scale: float | Tensor) -> Tensor:
    """W with its mimicking weights (off the diagonal) times ``scale``: the ramp that short runs need at the start."""
    diagonal_MM = torch.diag(torch.diag(weights_MM))
    return diagonal_MM + scale * (weights_MM - diagonal_MM)


def add_teacher(weights_MM: Tensor, weight: float) -> Tensor:
    """W with a teacher behind the branches, ``[M + 1, M + 1]``: a row, and a column of zeros, as it learns nothing.

    It has the same weight for every branch that learns from the labels.
    """
    row_M = weight * (torch.diag(weights_MM) != 0)
    return F.pad(torch.cat([weights_MM, row_M[None].to(weights_MM.dtype)]), (0, 1))


def drop_mimicking(weights_MM: Tensor, mask_S: Tensor) -> Tensor:
    """W without the mimicking terms of the side branches that ``mask_S`` leaves out; the cross-entropies stay (App. D).

    The bernoulli sampler drops a branch in this way: the branch is still computed. ``mask_S`` is a bool tensor from
    :func:`fastdhm.branch_mask`, on the device of W; the host does not wait for it.
    """
    in_M = torch.cat([mask_S.new_ones(1), mask_S])
    is_ce_MM = torch.eye(len(in_M), dtype=torch.bool, device=mask_S.device)
    return weights_MM.where(in_M[:, None] & in_M | is_ce_MM, 0)


def branch_sets(given: Mapping[str, float] | None, names: Iterable[str]) -> dict[tuple[str, ...], float]:
    """The distribution over sets of side branches that the structural sampler draws from (Eq. 6-8).

    Args:
        given: set -> probability. A set is its branches joined by ``+``, such as ``"B1+B2"``, or ``"none"`` for B0
            alone. ``None``: every subset of the branches, the empty one too, with equal probability.
        names: the network's side branches.

    Returns:
        The same distribution with each set as a tuple in the order of ``names``. The sets are sorted, so a draw does
        not depend on the order in which they were given.

    Raises:
        ValueError: a branch that the network does not have, a set given twice, or probabilities that do not sum to 1.
    """
    names = tuple(names)
    if given is None:
        subsets = [subset for size in range(len(names) + 1) for subset in combinations(names, size)]
        return dict.fromkeys(subsets, 1 / len(subsets))
    for text, prob in given.items():
        if not SHARE.holds(prob):
            raise UserError(f"the probability of {text!r} in branch_sets is {prob:g}: must be {SHARE.words}")
    total = math.fsum(given.values())
    if abs(total - 1) > TOLERANCE:
        raise UserError(f"the sum of the probabilities in branch_sets is {total:g}: must be 1")
    sets = {}
    for text, prob in given.items():
        members = [] if text.strip() == NO_BRANCH else [name.strip() for name in text.split("+")]
        for name in members:
            if name == "B0":
                raise UserError(f"branch_sets has {text!r}: leave B0 out, it is in every set")
            if name == NO_BRANCH:
                raise UserError(f"branch_sets has {text!r}: {NO_BRANCH} means no side branch, write it alone")
            if name not in names:
                raise unknown(f"branch in the set {text!r}:", name, names)
        subset = tuple(name for name in names if name in members)
        if len(subset) != len(members) or subset in sets:
            raise UserError(f"branch_sets has {text!r}: write each set once, and each branch once in it")
        sets[subset] = prob
    return dict(sorted(sets.items()))


def pick_branches(sets: Mapping[tuple[str, ...], float], seed: int, number: int) -> tuple[str, ...]:
    """The set of branches of draw ``number``, from a distribution of :func:`branch_sets`; no global generator is used.

    One Philox word, ``u = draw(0, number, STREAM_BRANCH_SET, seed)[0] / 2**32``, picks the first set whose cumulative
    probability is above it. The host draws, so branches outside the set need not be computed.
    """
    u = philox.draw(0, number, philox.STREAM_BRANCH_SET, seed)[0] / 2**32
    possible = [subset for subset, prob in sets.items() if prob > 0]
    upper = 0.0
    for subset in possible[:-1]:
        upper += sets[subset]
        if u < upper:
            return subset
    return possible[-1]  # also if the probabilities sum to slightly less than 1
