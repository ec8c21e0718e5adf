from importlib import import_module

import numpy as np
import pytest
import torch

from fastdhm.reid import rerank


def plain_rerank(feature_ND, Q, k1, k2, lambda_value):
    """The paper's definition with sets and loops; distances and the image itself as the authors' code has them."""
    N = len(feature_ND)
    squared = ((feature_ND[:, None] - feature_ND[None]) ** 2).sum(2)
    distance = squared / squared.max(1, keepdims=True)
    order = [sorted(range(N), key=lambda j, i=i: (j != i, squared[i, j], j)) for i in range(N)]

    def reciprocal(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    def expanded(i):
        core = reciprocal(i, k1)
        whole = set(core)
        for j in core:
            candidate = reciprocal(j, round(k1 / 2))
            if len(candidate & core) > 2 / 3 * len(candidate):
                whole |= candidate
        return whole

    encoding = np.zeros((N, N))
    for i in range(N):
        for j in expanded(i):
            encoding[i, j] = np.exp(-distance[i, j])
        encoding[i] /= encoding[i].sum()
    encoding = np.array([encoding[order[i][:k2]].mean(0) for i in range(N)])
    jaccard = np.array(
        [
            [1 - np.minimum(encoding[q], encoding[g]).sum() / np.maximum(encoding[q], encoding[g]).sum()
             for g in range(Q, N)]
            for q in range(Q)
        ]
    )  # fmt: skip
    return (1 - lambda_value) * jaccard + lambda_value * distance[:Q, Q:]


def clustered(seed, N=48, features=6):
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal((7, features))[rng.integers(0, 7, N)] + rng.standard_normal((N, features))


@pytest.mark.parametrize("chunk_mib", [64, 1e-4], ids=["whole", "chunked"])
@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (7, 3), (4, 1)], ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_as_the_papers_definition(monkeypatch, chunk_mib, k1, k2, seed):
    monkeypatch.setattr(import_module("fastdhm.reid.rerank"), "CHUNK_MIB", chunk_mib)
    feature_ND = clustered(seed).astype(np.float32)
    got = rerank(feature_ND[:11], feature_ND[11:], k1, k2, 0.3)
    np.testing.assert_allclose(got, plain_rerank(feature_ND.astype(np.float64), 11, k1, k2, 0.3), atol=1e-5)


def test_cosine_is_euclidean_of_unit_features():
    feature_ND = torch.tensor(clustered(3), dtype=torch.float32)
    unit_ND = torch.nn.functional.normalize(feature_ND)
    got = rerank(feature_ND[:11], feature_ND[11:], metric="cosine")
    torch.testing.assert_close(got, rerank(unit_ND[:11], unit_ND[11:]), atol=1e-5, rtol=0)


def test_lambda_one_is_the_distance():
    feature_ND = torch.tensor(clustered(4), dtype=torch.float32)
    got = rerank(feature_ND[:11], feature_ND[11:], lambda_value=1)
    squared = torch.cdist(feature_ND.double(), feature_ND.double()).square()
    torch.testing.assert_close(got.double(), (squared / squared.amax(1, True))[:11, 11:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("N", [2, 3, 20, 21])
def test_in_a_small_set_all_images_are_neighbours(N):
    feature_ND = clustered(5, N)
    got = rerank(feature_ND[:1], feature_ND[1:])
    np.testing.assert_allclose(got, plain_rerank(feature_ND, 1, min(20, N - 1), min(6, N), 0.3), atol=1e-5)


def test_identical_images_are_no_distance_apart():
    result = rerank(torch.ones(2, 3), torch.ones(30, 3), 5, 2)
    assert result.isfinite().all()


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (torch.ones(2, 3), {"k1": 0}, "k1 is 0"),
        (torch.ones(2, 3), {"k2": 0}, "k2 is 0"),
        (torch.ones(2, 3), {"lambda_value": 1.5}, "lambda_value is 1.5"),
        (torch.ones(2, 4), {}, r"must be \[Q, D\]"),
        (torch.ones(2, 3), {"metric": "l1"}, "unknown metric"),
        (torch.full((2, 3), torch.nan), {}, "query_QD: row 0"),
    ],
    ids=["k1", "k2", "lambda", "width", "metric", "nan"],
)
def test_wrong_input_is_refused(query, options, message):
    with pytest.raises(ValueError, match=message):
        rerank(query, torch.ones(30, 3), **options)
