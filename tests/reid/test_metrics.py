import numpy as np
import pytest
import torch

from fastdhm.errors import UserError
from fastdhm.ops import _extension
from fastdhm.reid import ranking_metrics
from fastdhm.reid._positions import place
from fastdhm.reid._protocol import Labels, SameIdentity

needs_cpp = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))
CPP = pytest.param("cpp", marks=needs_cpp)
IMPLS = [CPP, "numpy", "torch"]


def plain_metrics(distances_QG, query_ids_Q, gallery_ids_G, query_cams_Q, gallery_cams_G, max_rank):
    """The definition, one query and one gallery entry after the other: (average precisions, first ranks)."""
    precisions, firsts = [], []
    for q, (identity, camera) in enumerate(zip(query_ids_Q, query_cams_Q, strict=True)):
        order = sorted(range(len(gallery_ids_G)), key=lambda g, q=q: (distances_QG[q][g], g))
        seen, hits, precision, first = 0, 0, 0.0, 0
        for g in order:
            if gallery_ids_G[g] == -1 or (gallery_ids_G[g] == identity and gallery_cams_G[g] == camera):
                continue
            seen += 1
            if gallery_ids_G[g] == identity:
                hits += 1
                precision += hits / seen
                first = first or seen
        precisions.append(precision / hits if hits else float("nan"))
        firsts.append(first)
    matched = [first for first in firsts if first]
    cmc = [sum(first <= r for first in matched) / len(matched) for r in range(1, max_rank + 1)]
    return np.array(precisions), np.array(firsts), np.array(cmc)


def random_case(seed, num_queries=23, num_gallery=61, values=None):
    """Labels with junk, distractors, identities that only one side has; distances, few values of them for ties."""
    rng = np.random.default_rng(seed)
    distances = rng.random((num_queries, num_gallery)).astype(np.float32)
    if values:
        distances = np.floor(distances * values).astype(np.float32)
    labels = (
        rng.integers(1, 9, num_queries),
        rng.integers(-1, 8, num_gallery),
        rng.integers(0, 3, num_queries),
        rng.integers(0, 3, num_gallery),
    )
    return distances, *labels


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("values", [None, 12, 2, 1], ids=["distinct", "some-ties", "many-ties", "all-equal"])
@pytest.mark.parametrize("seed", range(3))
def test_as_a_plain_loop(impl, values, seed):
    case = random_case(seed, values=values)
    ap_Q, first_Q, cmc_R = plain_metrics(*case, max_rank=20)
    metrics = ranking_metrics(*case, max_rank=20, impl=impl)
    np.testing.assert_allclose(metrics.ap_Q, ap_Q, atol=1e-12)
    np.testing.assert_allclose(metrics.cmc_R, cmc_R, atol=1e-12)
    assert metrics.mean_ap == pytest.approx(np.nanmean(ap_Q), abs=1e-12)
    assert metrics.first_rank_Q.tolist() == first_Q.tolist()
    assert metrics.num_without_match == (first_Q == 0).sum() > 0


def test_by_hand():
    """One query of identity 1 on camera 1. Ranking: junk, own camera, distractor, match, other, match."""
    metrics = ranking_metrics([[1, 2, 3, 4, 5, 6]], [1], [-1, 1, 0, 1, 2, 1], [1], [2, 1, 2, 2, 2, 3], max_rank=4)
    assert metrics.ap_Q.tolist() == [(1 / 2 + 2 / 4) / 2]
    assert metrics.cmc_R.tolist() == [0, 1, 1, 1]
    assert metrics.note is None


def test_ties_keep_gallery_order():
    early = ranking_metrics([[0.5, 0.5]], [1], [1, 2], [1], [2, 2])
    late = ranking_metrics([[0.5, 0.5]], [1], [2, 1], [1], [2, 2])
    assert (early.mean_ap, late.mean_ap) == (1, 0.5)


def test_curve_is_as_long_as_asked():
    metrics = ranking_metrics([[0.1, 0.2]], [1], [2, 1], [1], [2, 2], max_rank=7)
    assert metrics.cmc_R.tolist() == [0, 1, 1, 1, 1, 1, 1]


def test_query_without_match_is_left_out_and_said():
    metrics = ranking_metrics([[0.1, 0.2], [0.2, 0.1]], [1, 5], [1, 5], [1, 1], [2, 1])
    assert metrics.mean_ap == 1
    assert metrics.ap_Q.isnan().tolist() == [False, True]
    assert "1 of 2 queries" in metrics.note


@pytest.mark.parametrize("impl", IMPLS)
def test_chunks_change_no_bit(impl):
    case = random_case(5, num_queries=40, values=30)
    whole = ranking_metrics(*case, impl=impl)
    parts = ranking_metrics(*case, impl=impl, chunk_mib=61 * 4 * 3 / 2**20)
    assert torch.equal(whole.ap_Q.nan_to_num(), parts.ap_Q.nan_to_num())
    assert whole.mean_ap == parts.mean_ap
    assert torch.equal(whole.cmc_R, parts.cmc_R)


@pytest.mark.parametrize("impl", [CPP, "torch"])
@pytest.mark.parametrize("num_gallery", [61, 5000], ids=["few-matches", "many-matches"])
def test_backends_give_the_same_bits(impl, num_gallery):
    case = random_case(6, num_queries=40, num_gallery=num_gallery, values=30)
    ours, numpys = (ranking_metrics(*case, impl=name) for name in (impl, "numpy"))
    assert torch.equal(ours.ap_Q.nan_to_num(), numpys.ap_Q.nan_to_num())
    assert torch.equal(ours.cmc_R, numpys.cmc_R)


@pytest.mark.parametrize("impl", [CPP, "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_backends_give_the_same_heads(impl, dtype):
    distances, *labels = random_case(8, values=10)
    same_identity = SameIdentity(Labels.checked(*labels))
    heads = {}
    for name in (impl, "numpy"):
        parts = place(torch.from_numpy(distances).to(dtype), 0, same_identity, top_k=100, impl=name)
        heads[name] = [np.concatenate(part) for part in zip(*((p.index_QK, p.distance_QK) for p in parts), strict=True)]
    for ours, numpys in zip(heads[impl], heads["numpy"], strict=True):
        np.testing.assert_array_equal(ours, numpys)
        assert ours.dtype == numpys.dtype


def test_without_the_extension_numpy_serves(monkeypatch):
    case = random_case(9)
    wanted = ranking_metrics(*case, impl="numpy")
    monkeypatch.setattr(_extension, "_module", None)
    monkeypatch.setattr(_extension, "_reason", "it was not built")
    assert torch.equal(ranking_metrics(*case).ap_Q.nan_to_num(), wanted.ap_Q.nan_to_num())
    with pytest.raises(UserError, match="needs the C\\+\\+ extension: it was not built"):
        ranking_metrics(*case, impl="cpp")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_other_dtypes_and_strides(impl, dtype):
    distances, *labels = random_case(7, values=100)
    wanted = ranking_metrics(distances, *labels)
    columns_first = torch.tensor(distances).to(dtype).T.contiguous().T
    got = ranking_metrics(columns_first, *(torch.tensor(label) for label in labels), impl=impl)
    assert torch.equal(got.ap_Q.nan_to_num(), wanted.ap_Q.nan_to_num())


def test_whole_numbers_beyond_float32_are_kept_apart():
    metrics = ranking_metrics(torch.tensor([[2**24 + 1, 2**24]]), [1], [2, 1], [1], [2, 2])
    assert metrics.mean_ap == 1


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_value_that_is_not_finite_is_named(impl, value):
    distances, *labels = random_case(0)
    distances[17, 4] = value
    with pytest.raises(ValueError, match="row 17, column 4"):
        ranking_metrics(distances, *labels, impl=impl, chunk_mib=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distances": np.zeros((3, 2))}, "must be (2, 3).*transposed"),
        ({"distances": np.zeros((2, 4))}, r"must be \(2, 3\)"),
        ({"query_ids": [1.5, 2]}, "query_ids_Q is float64"),
        ({"query_ids": [[1, 2]]}, "one dimension"),
        ({"query_cams": [1]}, "query_cams_Q has 1"),
        ({"gallery_ids": [], "gallery_cams": []}, "gallery_ids_G is empty"),
        ({"max_rank": 0}, "max_rank is 0"),
        ({"chunk_mib": 0}, "chunk_mib is 0"),
        ({"impl": "fortran"}, "unknown impl 'fortran'"),
    ],
    ids=["transposed", "shape", "labels-float", "labels-2d", "lengths", "empty", "max-rank", "chunk", "impl"],
)
def test_wrong_input_is_refused(change, message):
    given = {"distances": np.ones((2, 3)), "query_ids": [1, 2], "gallery_ids": [1, 2, 3]}
    given |= {"query_cams": [1, 1], "gallery_cams": [2, 2, 2], "max_rank": 5} | change
    distances, query_ids, gallery_ids, query_cams, gallery_cams, max_rank = (
        given.pop(name) for name in ("distances", "query_ids", "gallery_ids", "query_cams", "gallery_cams", "max_rank")
    )
    with pytest.raises(ValueError, match=message.replace("(2, 3).*", r"\(2, 3\).*")):
        ranking_metrics(distances, query_ids, gallery_ids, query_cams, gallery_cams, max_rank, **given)


def test_no_match_at_all_is_refused():
    with pytest.raises(UserError, match="none of 2 queries"):
        ranking_metrics(np.ones((2, 2)), [1, 2], [3, 4], [1, 1], [2, 2])
