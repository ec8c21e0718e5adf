"""Ranks by counting: those of a stable sort, whatever the number of matches, the dtype, the strides and the ties."""

import numpy as np
import pytest
import torch

from fastdhm.benchmarks.harness import timing as harness
from fastdhm.ops import _extension
from fastdhm.ops.match_ranks import match_ranks, match_ranks_eager

needs_cpp = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))
pytestmark = needs_cpp

NONE = torch.zeros(0, dtype=torch.int64)
DTYPES = [torch.float32, torch.float64]


def pairs(rng, num_queries, num_gallery, share):
    """Query and gallery index of a random share of the matrix, in order."""
    return tuple(torch.from_numpy(index) for index in (rng.random((num_queries, num_gallery)) < share).nonzero())


def random_case(seed, dtype, scale, matched=0.05, num_queries=5, num_gallery=700):
    """Distances rounded to whole multiples of ``scale``, of both signs and zeros too, and who matches, who is out."""
    rng = np.random.default_rng(seed)
    distances_QG = torch.from_numpy(3 * rng.standard_normal((num_queries, num_gallery))).to(dtype)
    if scale:
        distances_QG = distances_QG.round() * scale
    shape = num_queries, num_gallery
    junk_J = torch.from_numpy(rng.permutation(num_gallery)[:30])
    return distances_QG, pairs(rng, *shape, matched), pairs(rng, *shape, 0.02), junk_J


def assert_same(got, wanted):
    for name, ours, theirs in zip(("rank_P", "nearest_QK"), got, wanted, strict=False):
        assert torch.equal(ours, theirs), name
    assert got[2] == wanted[2]


@pytest.mark.parametrize("matched", [0.005, 0.05, 0.7, 1], ids=["few", "some", "many", "all"])
@pytest.mark.parametrize("scale", [None, 1, 5e-324], ids=["distinct", "ties", "subnormal"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_a_stable_sort(dtype, scale, matched):
    scale = 1e-45 if scale == 5e-324 and dtype == torch.float32 else scale
    case = random_case(0, dtype, scale, matched)
    assert_same(match_ranks(*case, top_k=20), match_ranks_eager(*case, top_k=20))


@pytest.mark.parametrize("matched", [0.05, 0.7], ids=["some", "many"])
def test_subnormal_distances_where_the_processor_flushes_them(matched):
    case = random_case(1, torch.float32, 1e-45, matched)
    wanted = match_ranks_eager(*case)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        got = match_ranks(*case)
    finally:
        torch.set_flush_denormal(False)
    assert_same(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_largest_distances(dtype):
    """The next number after the greatest is infinity, where the left out are."""
    greatest = torch.finfo(dtype).max
    distances_QG = torch.tensor([[greatest, -greatest, greatest, greatest, -0.0, 0.0]], dtype=dtype)
    case = distances_QG, (torch.tensor([0, 0, 0, 0]), torch.tensor([0, 1, 2, 5])), (NONE, NONE), torch.tensor([3])
    assert match_ranks(*case)[0].tolist() == [3, 0, 4, 2]


def test_matches_that_are_left_out_come_last():
    case = torch.tensor([[0.0, 1, 2, 3]]), (torch.tensor([0, 0]), torch.tensor([0, 3]))
    left_out = torch.tensor([0]), torch.tensor([0])
    for junk_J, wanted in [(NONE, [3, 2]), (torch.tensor([1, 2, 3]), [0, 3])]:
        got = match_ranks(*case, left_out, junk_J)
        assert got[0].tolist() == wanted
        assert_same(got, match_ranks_eager(*case, left_out, junk_J))


@pytest.mark.parametrize("layout", ["columns", "every-other-row", "every-other-column", "expanded"])
def test_strides(layout):
    distances_QG, *rest = random_case(2, torch.float32, 1)
    strided_QG = {
        "columns": distances_QG.T.contiguous().T,
        "every-other-row": distances_QG.repeat_interleave(2, 0)[::2],
        "every-other-column": distances_QG.repeat_interleave(2, 1)[:, ::2],
        "expanded": distances_QG[:1].expand(5, -1),
    }[layout]
    assert_same(match_ranks(strided_QG, *rest, top_k=3), match_ranks_eager(strided_QG, *rest, top_k=3))


def test_threads_change_nothing():
    case = random_case(3, torch.float32, 1, num_queries=300)
    wanted = match_ranks_eager(*case)
    for number in (1, 2, 5):
        with harness.threads(number):
            got = match_ranks(*case)
        assert_same(got, wanted)


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_first_wrong_row_is_found(dtype, value):
    distances_QG, *rest = random_case(4, dtype, None, num_queries=300)
    distances_QG[290, 5] = distances_QG[171, rest[2][0]] = value
    assert match_ranks(distances_QG, *rest)[2] == 171


def test_nothing_to_rank():
    assert match_ranks(torch.ones(2, 3), (NONE, NONE), (NONE, NONE), NONE)[1].shape == (2, 0)
    nearest_QK = match_ranks(torch.ones(2, 3), (NONE, NONE), (NONE, NONE), torch.tensor([1]), top_k=5)[1]
    assert nearest_QK.tolist() == [[0, 2, -1]] * 2
    assert match_ranks(torch.ones(0, 3), (NONE, NONE), (NONE, NONE), NONE, 2)[1].shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distances_QG": torch.ones(3)}, r"needs float32 or float64 \[Q, G\]"),
        ({"distances_QG": torch.ones(2, 3, dtype=torch.float16)}, "distances_QG is Half"),
        ({"distances_QG": torch.ones(2, 0)}, "gallery has 0"),
        ({"matches": (torch.tensor([0, 2]), torch.tensor([0, 0]))}, r"pair 1 is query 2.*\[2, 3\]"),
        ({"matches": (torch.tensor([0]), torch.tensor([-1]))}, "gallery -1"),
        ({"left_out": (torch.tensor([0]), torch.tensor([3]))}, "left_out: pair 0"),
        ({"matches": (torch.tensor([0, 0]), torch.tensor([1, 0]))}, "pair 1 does not come after pair 0"),
        ({"matches": (torch.tensor([1, 0]), torch.tensor([0, 1]))}, "in order of query"),
        ({"matches": (torch.tensor([0, 0]), torch.tensor([1, 1]))}, "does not come after"),
        ({"matches": (torch.tensor([0, 1]), torch.tensor([1]))}, "same length"),
        ({"matches": (torch.tensor([0.0]), torch.tensor([1]))}, "int64"),
        ({"junk_J": torch.tensor([3])}, "junk: 3"),
        ({"top_k": -1}, "top_k is -1"),
    ],
    ids=[
        *("one-dimension", "dtype", "no-gallery", "query", "gallery", "left-out"),
        *("gallery-order", "query-order", "twice", "lengths", "index-dtype", "junk", "top-k"),
    ],
)
def test_wrong_input_is_refused(change, message):
    given = {"distances_QG": torch.ones(2, 3), "matches": (NONE, NONE), "left_out": (NONE, NONE), "junk_J": NONE}
    with pytest.raises(ValueError, match=message):
        match_ranks(**given | change)
