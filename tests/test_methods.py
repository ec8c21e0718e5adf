"""Methods as weight matrices."""

import pytest
import torch

from fastdhm.methods import scale_mimicking, weight_matrix


def test_the_three_methods():
    assert weight_matrix("baseline", 3).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert torch.equal(weight_matrix("dsl", 3), torch.eye(3))
    assert torch.equal(weight_matrix("dhm", 3), torch.ones(3, 3))


@pytest.mark.parametrize("method", ["baseline", "dsl", "dhm"])
def test_one_branch_makes_them_all_plain_training(method):
    assert weight_matrix(method, 1).tolist() == [[1]]


def test_the_ramp_scales_only_the_mimicking():
    assert scale_mimicking(weight_matrix("dhm", 2), 0.25).tolist() == [[1, 0.25], [0.25, 1]]
    assert torch.equal(scale_mimicking(weight_matrix("dsl", 2), 0.25), torch.eye(2))


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match="unknown method 'dhn'; did you mean 'dhm'"):
        weight_matrix("dhn", 3)
