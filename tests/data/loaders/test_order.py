"""Which samples an epoch has, and in which order."""

import dataclasses

import numpy as np
import pytest
import torch
from batches import ALL_KINDS, OPTIONS, assert_same, read

from fastdhm.data.beton.files import build
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.loaders.build import build_loader
from fastdhm.data.loaders.loader import LoaderOptions
from fastdhm.data.loaders.order import balanced_order, epoch_order
from fastdhm.data.sources.arrays import ArraySource

SIZES = {"uneven": (400, 31, 9), "many_classes": (3, 1, 2, 1, 1), "even": (20, 20), "one": (17,)}


def test_epoch_order_is_a_permutation_of_its_own():
    orders = [epoch_order(1000, epoch, seed, True) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(orders[0], epoch_order(1000, 0, 0, True))
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    assert np.array_equal(epoch_order(5, 3, 9, False), np.arange(5))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_balanced_order_takes_each_class_and_each_of_its_images_alike(sizes):
    target_N = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    whole = np.zeros_like(sizes)
    for epoch in range(len(sizes)):
        order_N, copy_N = balanced_order(target_N, epoch, seed=3)
        assert order_N.dtype == copy_N.dtype == np.int64
        assert len(order_N) == len(target_N)
        per_class = np.bincount(target_N[order_N], minlength=len(sizes))
        per_image = np.bincount(order_N, minlength=len(target_N))
        assert np.ptp(per_class) <= 1
        assert max(np.ptp(per_image[target_N == k]) for k in range(len(sizes))) <= 1
        assert sorted(zip(order_N, copy_N, strict=True)) == [(i, c) for i, n in enumerate(per_image) for c in range(n)]
        whole += per_class
    assert np.ptp(whole) == 0  # classes that come once more take turns


def test_balanced_order_is_of_its_seed_and_epoch_and_shuffled():
    target_N = np.repeat([0, 1], [900, 100])
    orders = [balanced_order(target_N, epoch, seed)[0] for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert np.array_equal(orders[0], balanced_order(target_N, 0, 0)[0])
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    assert set(orders[0][target_N[orders[0]] == 0]) != set(orders[1][target_N[orders[1]] == 0])  # others are taken
    halves = [target_N[part].mean() for part in np.split(orders[0], 2)]
    assert halves == pytest.approx([0.5, 0.5], abs=0.08)


def test_a_class_without_samples_gets_none():
    target_N = np.array([4, 4, 4, 1])
    assert sorted(target_N[balanced_order(target_N, 0, 0)[0]]) == [1, 1, 4, 4]


@ALL_KINDS
def test_loaders_balance_an_uneven_set_alike_and_from_the_middle(tmp_path, kind):
    """Sixty images of one class and three of another: each copy is a view of its own, of the right image."""
    target_N = np.repeat([0, 1], [60, 3])
    image_NHWC = np.random.default_rng(0).integers(256, size=(63, 32, 32, 3), dtype=np.uint8)
    source = ArraySource("uneven", "train", image_NHWC, target_N, ("many", "few"))
    build(source, tmp_path / "train.beton", ImageSettings(), workers=1, progress=False)
    options = LoaderOptions(**OPTIONS | {"batch_size": 10}, balanced=True)
    loaders = [build_loader(of, options, source=source, beton=tmp_path / "train.beton") for of in (kind, "torch")]
    try:
        batches, torchs, rest = read(loaders[0], 2), read(loaders[1], 2), read(loaders[0], 2, 4)
    finally:
        for loader in loaders:
            loader.close()
    assert_same(batches, torchs)
    assert_same(batches[4:], rest)
    view_N = torch.cat([batch.index_B for batch in batches]).numpy()
    assert len(np.unique(view_N)) == len(view_N) == 60
    assert 27 <= target_N[view_N % 63].sum() <= 32, "half of 63, but for three that fill no batch"
    for batch in batches:
        index_B = batch.index_B.numpy() % 63
        assert np.array_equal(batch.image_BHWC.numpy(), image_NHWC[index_B])
        assert np.array_equal(batch.target_B.numpy(), target_N[index_B])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_balanced_batches(count):
    whole = LoaderOptions(
        **OPTIONS | {"batch_size": 8}, parts=2, balanced=True, target_S=np.repeat([0, 1], [30, 10]),
        samples_S=np.arange(1, 80, 2),
    )  # fmt: skip
    shares = [dataclasses.replace(whole, share=(rank, count)).epoch_batches(80, 1, 0) for rank in range(count)]
    for view_B, *parts in zip(whole.epoch_batches(80, 1, 0), *shares, strict=True):
        assert np.array_equal(view_B, np.concatenate([part.reshape(2, -1) for part in parts], axis=1).flatten())
        assert (view_B % 2 == 1).all()
