"""Figure 4: which layers correspond, and the correlation of their filters."""

import numpy as np
import pytest
import torch

from fastdhm import models
from fastdhm.models.correlation import expected_by_chance, kernel_correlation, layer_pairs, summarize


def test_layers_correspond_block_by_block():
    with torch.device("meta"):
        model = models.build("resnet14", 10)
    pairs = layer_pairs(model, "B2", (3, 32, 32))
    assert pairs == [
        *((f"trunk.layer2.{b}.conv{c}", f"branches.B2.stages.0.{b}.conv{c}") for b in (0, 1) for c in (1, 2)),
        *((f"trunk.layer3.0.conv{c}", f"branches.B2.stages.1.0.conv{c}") for c in (1, 2)),
    ]  # B2 ends a block earlier: the trunk's layer3.1 has no counterpart


def test_of_bottleneck_blocks_the_middle_layers_are_taken():
    with torch.device("meta"):
        model = models.build("resnet50", 10)
    pairs = layer_pairs(model, "B2", (3, 64, 64))
    assert all(main.endswith(".conv2") and side.endswith(".conv2") for main, side in pairs)
    assert [main for main, _ in pairs] == [
        f"trunk.layer{s}.{b}.conv2" for s, b in ((3, 0), (3, 1), (3, 2), (4, 0), (4, 1))
    ]


@pytest.mark.parametrize("arch", ["wrn-10-1", "densenet-10-4", "torchvision:resnet18"])
def test_other_families_have_pairs_of_one_shape(arch):
    with torch.device("meta"):
        model = models.build(arch, 10)
    pairs = layer_pairs(model, "B2", (3, 64, 64))
    shapes = [tuple(model.get_submodule(name).weight.shape for name in pair) for pair in pairs]
    assert pairs and all(main == side for main, side in shapes)


@pytest.mark.parametrize(
    ("branch", "message"), [("B1", "no 3x3 convolution of B1 has the same shape"), ("B7", "unknown branch 'B7'")]
)
def test_a_branch_without_counterparts_is_refused(branch, message):
    with torch.device("meta"):
        model = models.build("resnet8", 10)
    with pytest.raises(ValueError, match=message):
        layer_pairs(model, branch, (3, 32, 32))


def test_the_matrix_is_numpys_of_the_largest_weights():
    generator = torch.Generator().manual_seed(0)
    main, side = (torch.randn(6, 9, 3, 3, generator=generator) for _ in range(2))
    expected = np.corrcoef(main.amax((2, 3)).numpy(), side.amax((2, 3)).numpy())[:6, 6:]
    correlation_FF = kernel_correlation(main, side)
    assert np.allclose(correlation_FF.numpy(), expected, atol=1e-6)
    assert torch.allclose(kernel_correlation(3 * main + 1, side), correlation_FF)
    assert torch.allclose(kernel_correlation(main, main).diagonal(), torch.ones(6, dtype=torch.float64))


def test_constant_filters_correlate_with_nothing():
    assert not kernel_correlation(torch.zeros(4, 5, 3, 3), torch.randn(4, 5, 3, 3)).any()


@pytest.mark.parametrize("channels", [4, 16])
def test_independent_filters_correlate_as_much_as_chance_says(channels):
    main_FC, side_FC = torch.randn(2, 400, channels, generator=torch.Generator().manual_seed(1))
    correlation_FF = kernel_correlation(main_FC[:, :, None, None], side_FC[:, :, None, None])
    assert float(summarize(correlation_FF)["mean_abs"]) == pytest.approx(expected_by_chance(channels), rel=0.02)
    assert np.isnan(expected_by_chance(2))


def test_the_best_match_finds_a_permuted_twin():
    main_FCHW = torch.randn(8, 20, 3, 3, generator=torch.Generator().manual_seed(2))
    summary = summarize(kernel_correlation(main_FCHW, main_FCHW.flip(0)))
    assert float(summary["best_match"]) == pytest.approx(1) and float(summary["mean_abs"]) < 0.5
