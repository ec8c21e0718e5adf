"""A training method as a weight matrix over the terms of the mimicking loss, and the samplers that thin it out.

A sampler is a pure function of a seed and of the number of the draw (an epoch or a step): a resumed run needs no state
for it, and every process of a run draws the same.

Legend: M branches (B0, the main one and the deepest, then B1, B2, ...), S = M - 1 side branches.
"""

import math
from collections.abc import Iterable, Mapping
from itertools import combinations

import torch
from torch import Tensor

from fastdhm.errors import UserError, unknown
from fastdhm.ops import philox

METHODS = ("baseline", "dsl", "dhm")
DIRECTIONS = ("both", "top-down", "bottom-up")
# sampler -> how often it draws where nothing else is asked for; App. D draws once an epoch
SAMPLERS = {"binary": "epoch", "bernoulli": "epoch", "structural": "step"}
NO_BRANCH = "none"
TOLERANCE = 1e-6  # by which probabilities written as decimals may miss a sum of 1


def weight_matrix(
    method: str, num_branches: int, direction: str = "both", ce_weight: float = 1.0, mimic_weight: float = 1.0
) -> Tensor:
    """The weights of ``loss = sum(W * terms)`` (Eq. 1-9): ``W[p, q]`` for teacher p and student q, float32 ``[M, M]``.

    ``baseline`` trains the main branch alone, ``dsl`` every branch on the labels, ``dhm`` every branch on the labels
    and on other branches (4.3.1): on all of them (``both``), on the deeper ones (``top-down``: W[p, q] = 1 for p <= q)
    or on the shallower ones (``bottom-up``, its transpose).

    ``ce_weight`` is lambda, the weight of the side branches' cross-entropies (Eq. 8; the main branch's is 1), and
    ``mimic_weight`` is mu, that of the mimicking terms (Eq. 9). Both are 1 in the paper's experiments.

    Raises:
        ValueError: an unknown method or direction, a direction or weight that the method does not have, a weight that
            is negative or not finite, or no branch.
    """
    check(method, direction, ce_weight=ce_weight, mimic_weight=mimic_weight)
    if num_branches < 1:
        raise ValueError(f"num_branches is {num_branches}: a network has at least its main branch")
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
    """``ValueError`` if one of these is not known or out of range, or if the method has nothing that it applies to."""
    for kind, value, known in (
        ("method", method, METHODS),
        ("direction", direction, DIRECTIONS),
        ("sampler", sampler, SAMPLERS),
    ):
        if value not in known:
            raise unknown(kind, value, known)
    for kind, weight in (("ce_weight", ce_weight), ("mimic_weight", mimic_weight)):
        if not 0 <= weight < math.inf:
            raise UserError(f"{kind} is {weight}: must be a finite number, 0 or more")
    mimicking = (("direction", direction, "both"), ("sampler", sampler, "binary"), ("mimic_weight", mimic_weight, 1))
    for kind, given, usual in mimicking:
        if method != "dhm" and given != usual:
            raise UserError(f"{kind} is {given}: {method} has no mimicking, set the method to dhm or leave {kind} out")
    if method == "baseline" and ce_weight != 1:
        raise UserError(f"ce_weight is {ce_weight}: the baseline has no side branches, set the method or leave it out")


def scale_mimicking(weights_MM: Tensor, scale: float | Tensor) -> Tensor:
    """W with its mimicking terms (off the diagonal) times ``scale``: the ramp that short runs need to get going."""
    diagonal_MM = torch.diag(torch.diag(weights_MM))
    return diagonal_MM + scale * (weights_MM - diagonal_MM)


def drop_mimicking(weights_MM: Tensor, mask_S: Tensor) -> Tensor:
    """W without the mimicking terms of the side branches that ``mask_S`` leaves out; the cross-entropies stay (App. D).

    This is the bernoulli sampler's form of a drop: the branch is still computed. ``mask_S`` is bool, as
    :func:`fastdhm.branch_mask` gives it, on the device of W; nothing waits for it.
    """
    in_M = torch.cat([mask_S.new_ones(1), mask_S])
    is_ce_MM = torch.eye(len(in_M), dtype=torch.bool, device=mask_S.device)
    return weights_MM.where(in_M[:, None] & in_M | is_ce_MM, 0)


def branch_sets(given: Mapping[str, float] | None, names: Iterable[str]) -> dict[tuple[str, ...], float]:
    """The distribution over sets of side branches that the structural sampler draws from (Eq. 6-8).

    Args:
        given: a set, its branches joined by ``+`` (``"B1+B2"``, ``"none"`` for B0 alone), and its probability;
            ``None``: every subset of the branches, the empty one too, with equal probability.
        names: the network's side branches.

    Returns:
        The same with each set as a tuple in the order of ``names``, the sets themselves in one order however they were
        given: the draw depends on what was asked for, not on how it was written.

    Raises:
        ValueError: a branch that the network does not have, a set given twice, or what is no distribution.
    """
    names = tuple(names)
    if given is None:
        subsets = [subset for size in range(len(names) + 1) for subset in combinations(names, size)]
        return dict.fromkeys(subsets, 1 / len(subsets))
    for text, prob in given.items():
        if not 0 <= prob <= 1:
            raise UserError(f"branch_sets gives {text!r} the probability {prob:g}: must be in [0, 1]")
    total = math.fsum(given.values())
    if abs(total - 1) > TOLERANCE:
        raise UserError(f"branch_sets has probabilities that sum to {total:g}: the sum must be 1")
    sets = {}
    for text, prob in given.items():
        members = [] if text.strip() == NO_BRANCH else [name.strip() for name in text.split("+")]
        for name in members:
            if name in ("B0", NO_BRANCH):
                raise UserError(f"branch_sets has {text!r}: B0 is in every set and not named; {NO_BRANCH} stands alone")
            if name not in names:
                raise unknown(f"branch in the set {text!r}:", name, names)
        subset = tuple(name for name in names if name in members)
        if len(subset) != len(members) or subset in sets:
            raise UserError(f"branch_sets has {text!r}: each set is named once, and each branch once in it")
        sets[subset] = prob
    return dict(sorted(sets.items()))


def pick_branches(sets: Mapping[tuple[str, ...], float], seed: int, number: int) -> tuple[str, ...]:
    """The set of draw ``number``, from a distribution that :func:`branch_sets` made; no global generator is touched.

    One Philox word, ``u = draw(0, number, STREAM_BRANCH_SET, seed)[0] / 2**32``, picks the first set whose cumulated
    probability is above it. The host draws, so branches that are out need not be computed.
    """
    u = philox.draw(0, number, philox.STREAM_BRANCH_SET, seed)[0] / 2**32
    possible = [subset for subset, prob in sets.items() if prob > 0]
    upper = 0.0
    for subset in possible[:-1]:
        upper += sets[subset]
        if u < upper:
            return subset
    return possible[-1]  # also where the probabilities sum to a little less than 1
