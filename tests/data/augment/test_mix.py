"""Mixup and cutmix: what is drawn, and what becomes of the images."""

import numpy as np
import pytest
import torch

from fastdhm.data.augment.mix import Mix, draw_mix, mix_, partners

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


def draws(mixup, cutmix, count=4000, seed=0):
    return [draw_mix(mixup, cutmix, seed=seed, epoch=i % 7, batch=i // 7) for i in range(count)]


@pytest.fixture
def images():
    return torch.randn(6, 3, 10, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 100.0])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shares_are_of_beta(kind, alpha):
    found = draws(**{"mixup": 0.0, "cutmix": 0.0, kind: alpha})
    share_N = np.array([mix.share for mix in found])
    spread = 1 / np.sqrt(4 * (2 * alpha + 1))
    assert share_N.min() >= 0
    assert share_N.max() <= 1
    assert share_N.mean() == pytest.approx(0.5, abs=5 * spread / np.sqrt(len(share_N)))
    assert share_N.std() == pytest.approx(spread, rel=0.05)
    assert {mix.centre is None for mix in found} == {kind == "mixup"}


def test_a_coin_chooses_and_boxes_lie_anywhere():
    centre_N2 = np.array([mix.centre for mix in draws(0.2, 1.0) if mix.centre is not None])
    assert len(centre_N2) / 4000 == pytest.approx(0.5, abs=0.04)
    for column_N in centre_N2.T:
        assert np.abs(np.sort(column_N) - np.linspace(0, 1, len(column_N))).max() < 0.04  # uniform
    assert abs(np.corrcoef(centre_N2.T)[0, 1]) < 0.1


def test_draws_are_of_the_seed_the_epoch_and_the_batch():
    given = {"seed": 3, "epoch": 2, "batch": 5}
    assert draw_mix(0.2, 1.0, **given) == draw_mix(0.2, 1.0, **given)
    others = [given, *({**given, name: value + 1} for name, value in given.items())]
    assert len({draw_mix(0.2, 1.0, **other).share for other in others}) == 4


@LAYOUTS
def test_mixup_blends_the_images_of_each_pair_in_place(images, layout):
    mixed = images.clone(memory_format=layout)
    assert mix_(mixed, Mix(0.3)) == 0.3
    other = images[[1, 0, 3, 2, 5, 4]]
    torch.testing.assert_close(mixed, 0.3 * images + 0.7 * other)


@LAYOUTS
@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.0, 0.99), (0.9, 0.1)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.4, 0.95, 1.0])
def test_cutmix_swaps_a_box_and_the_share_is_that_of_the_pixels(images, layout, centre, share):
    mixed = images.clone(memory_format=layout)
    kept = mix_(mixed, Mix(share, centre))
    own, other = mixed == images, mixed == images[[1, 0, 3, 2, 5, 4]]
    assert torch.equal(own, ~other)
    assert own.double().mean().item() == pytest.approx(kept)
    assert kept >= share - 1e-9  # sides are whole pixels, and what lies outside is cut off
    is_swapped_HW = ~own[0, 0]
    rows, columns = is_swapped_HW.any(1).sum(), is_swapped_HW.any(0).sum()
    assert is_swapped_HW.sum() == rows * columns  # a box
    if share == 0.4 and centre == (0.5, 0.5):
        assert (rows, columns) == (6, 10)  # 2 floor(sqrt(0.6) 10 / 2) and 2 floor(sqrt(0.6) 14 / 2)


def test_partners_swap_in_pairs():
    assert partners(torch.tensor([5, 6, 7, 8])).tolist() == [6, 5, 8, 7]
