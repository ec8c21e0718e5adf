import numpy as np
import pytest
import torch
from many_processes import outputs

from fastdhm.benchmarks.harness import timing as harness
from fastdhm.reid import _distances, rank, rank_distances, ranking_metrics, rerank


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setitem(_distances.TILES, "cpu", (4, 16))


def case(seed=0, num_queries=19, num_gallery=70, features=12):
    """Whole-number features, so that no product rounds and equal distances are equal exactly."""
    rng = np.random.default_rng(seed)
    query, gallery = (
        torch.tensor(rng.integers(-3, 4, (count, features)), dtype=torch.float32)
        for count in (num_queries, num_gallery)
    )
    labels = (
        rng.integers(1, 8, num_queries),
        rng.integers(-1, 8, num_gallery),
        rng.integers(0, 3, num_queries),
        rng.integers(0, 3, num_gallery),
    )
    return query, gallery, *labels


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_as_from_the_matrix_of_distances(metric):
    query, gallery, *labels = case()
    if metric == "cosine":
        query, gallery = torch.rand(19, 12) - 0.5, torch.rand(70, 12) - 0.5  # no ties, which would round apart
        distances = 1 - torch.cosine_similarity(query[:, None].double(), gallery.double(), dim=2)
    else:
        distances = (query[:, None] - gallery).double().square().sum(2).sqrt()
    wanted = ranking_metrics(distances, *labels)
    got = rank(query, gallery, *labels, metric, top_k=70)
    np.testing.assert_allclose(got.metrics.ap_Q, wanted.ap_Q, atol=1e-12)
    query_ids, gallery_ids, query_cams, gallery_cams = labels
    for q in range(19):
        valid = [
            g
            for g in range(70)
            if gallery_ids[g] != -1 and (gallery_ids[g] != query_ids[q] or gallery_cams[g] != query_cams[q])
        ]
        order = sorted(valid, key=lambda g, q=q: (distances[q, g].item(), g))
        assert got.index_QK[q, : len(order)].tolist() == order
        assert (got.index_QK[q, len(order) :] == -1).all()
        torch.testing.assert_close(got.distance_QK[q, : len(order)].double(), distances[q, order], atol=2e-6, rtol=1e-6)
        assert (got.distance_QK[q, len(order) :] == torch.inf).all()


def test_a_matrix_is_ranked_as_its_features_are():
    query, gallery, *labels = case()
    distances = (query[:, None] - gallery).double().square().sum(2).sqrt()
    of_matrix, of_features = rank_distances(distances, *labels), rank(query, gallery, *labels)
    assert torch.equal(of_matrix.index_QK, of_features.index_QK)
    assert torch.equal(of_matrix.metrics.ap_Q.nan_to_num(), of_features.metrics.ap_Q.nan_to_num())
    torch.testing.assert_close(of_matrix.distance_QK, of_features.distance_QK.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_memory_changes_no_bit(metric):
    generator = torch.Generator().manual_seed(1)
    _, _, *labels = case()
    features = [torch.randn(count, 12, generator=generator) for count in (19, 70)]
    whole, parts = (rank(*features, *labels, metric, memory_mib=mib) for mib in (64, 1e-3))
    assert torch.equal(whole.metrics.ap_Q.nan_to_num(), parts.metrics.ap_Q.nan_to_num())
    assert torch.equal(whole.index_QK, parts.index_QK)
    assert torch.equal(whole.distance_QK, parts.distance_QK)


def test_features_of_zeros_have_no_direction():
    result = rank(torch.zeros(1, 4), torch.eye(4), [1], [1, 1, 2, 2], [1], [2, 2, 2, 2], "cosine", top_k=4)
    assert result.distance_QK.tolist() == [[1, 1, 1, 1]]
    assert result.index_QK.tolist() == [[0, 1, 2, 3]]


def people(where=0.0, size=1.0, dtype=torch.float32):
    """Five pictures each of 20 people, who stand well apart in 24 features."""
    generator = torch.Generator().manual_seed(2)
    person_PD = 3 * torch.randn(20, 24, generator=generator, dtype=torch.float64)
    pictures = person_PD.repeat(5, 1) + 0.3 * torch.randn(100, 24, generator=generator, dtype=torch.float64)
    query_QD, gallery_GD = (size * (pictures + where)).to(dtype).split([20, 80])
    ids = torch.arange(20).repeat(5)
    return query_QD, gallery_GD, ids[:20], ids[20:], torch.zeros(20, dtype=torch.int64), torch.ones(80).long()


PLACES = {
    "far from 0": {"where": 3000},
    "far in one direction": {"where": torch.eye(24, dtype=torch.float64)[3] * 1e5},
    "two places": {"where": 3000.0 * (torch.arange(20) % 2 * 2 - 1).repeat(5)[:, None].double()},
    "1e20": {"size": 1e20},
    "1e-40": {"size": 1e-40},
    "1e200": {"size": 1e200, "dtype": torch.float64},
    "1e-310": {"size": 1e-310, "dtype": torch.float64},
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("place", PLACES)
def test_people_are_found_wherever_their_features_lie(place, metric):
    query, gallery, *labels = people(**PLACES[place])
    assert rank(query, gallery, *labels, metric).metrics.mean_ap == 1
    assert rank_distances(rerank(query, gallery, metric=metric), *labels).metrics.mean_ap == 1


def test_one_feature_out_of_all_proportion_hides_no_other():
    query, gallery, *labels = people()
    gallery[7] = 1e20
    found, wanted = (rank(query, one, *labels).metrics.ap_Q for one in (gallery, people()[1]))
    assert torch.equal(found[torch.arange(20) != 7], wanted[torch.arange(20) != 7])


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_same_picture_twice_is_no_distance_apart_and_ties(metric):
    query, gallery, *labels = people(where=500)
    gallery[[3, 70]] = query[0]
    for threads in (1, 2):
        with harness.threads(threads):
            result = rank(query, gallery, *labels, metric)
        assert result.index_QK[0, :2].tolist() == [3, 70] and result.distance_QK[0, :2].tolist() == [0, 0]


def test_features_may_be_a_read_only_map(tmp_path, recwarn):
    query, gallery, *labels = case()
    np.save(tmp_path / "gallery.npy", gallery.numpy())
    mapped = rank(query, np.load(tmp_path / "gallery.npy", mmap_mode="r"), *labels)
    assert torch.equal(mapped.index_QK, rank(query, gallery, *labels).index_QK)
    assert not recwarn


def test_no_head_is_asked_for():
    assert rank(*case(), top_k=0).index_QK.shape == (19, 0)


@pytest.mark.parametrize(
    ("query", "gallery", "options", "message"),
    [
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), {}, "query_QD: row 0"),
        (torch.ones(2, 3), torch.tensor([[1.0] * 3, [torch.inf] * 3]), {}, "gallery_GD: row 1"),
        (torch.ones(2, 3), torch.ones(2, 4), {}, "same network"),
        (torch.ones(3, 3), torch.ones(2, 3), {}, r"must be floating point \[2, features\]"),
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3), {}, "must be floating point"),
        (torch.ones(2, 3), torch.ones(2, 3), {"metric": "manhattan"}, "unknown metric 'manhattan'"),
        (torch.ones(2, 3), torch.ones(2, 3), {"top_k": -1}, "top_k is -1"),
    ],
    ids=["nan", "infinite", "width", "length", "dtype", "metric", "top-k"],
)
def test_wrong_input_is_refused(query, gallery, options, message):
    with pytest.raises(ValueError, match=message):
        rank(query, gallery, [1, 2], [1, 2], [1, 1], [2, 2], **options)


@pytest.mark.slow
def test_processes_rank_shares_of_the_queries_to_the_bits_of_one():
    """By features and re-ranked; in a block for each, in more, and in fewer than there are processes."""
    program = """
    import numpy as np
    from fastdhm.reid import Share, _blocks, _distances, rank, rank_again, rerank
    _distances.TILES["cpu"] = (4, 16)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    def bits(one):
        return [t.nan_to_num() for t in (one.metrics.ap_Q, one.metrics.cmc_R, one.index_QK, one.distance_QK)]
    with d.joined(torch.device("cpu")):
        share = Share(d.rank(), d.count(), d.gathered)
        for queries, mib in ((19, 1), (3, 1), (19, 1e-3)):
            features = [torch.randn(count, 12, generator=generator) for count in (queries, 70)]
            labels = [rng.integers(low, 8, count) for low, count in ((1, queries), (-1, 70), (0, queries), (0, 70))]
            alone, shared = (rank(*features, *labels, memory_mib=mib, **how) for how in ({}, {"share": share}))
            torch.testing.assert_close(bits(shared), bits(alone), rtol=0, atol=0)
            sys.modules["fastdhm.reid.rerank"].CHUNK_MIB = mib
            alone, shared = (rank_again(*features, *labels, **how) for how in ({}, {"share": share}))
            torch.testing.assert_close(bits(shared), bits(alone), rtol=0, atol=0)
    """
    outputs(program, 3)
