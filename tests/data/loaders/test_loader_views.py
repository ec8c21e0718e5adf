"""Repeated augmentation: views of samples, in the same batches by every loader, on any number of processes.

Legend: B batch, N samples of an epoch.
"""

import dataclasses

import numpy as np
import pytest
import torch
from batches import ALL_KINDS, KINDS, OPTIONS, SYNTHETIC, assert_same, read

from fastdhm.data.augment.augmentation import Augmentation
from fastdhm.data.augment.policy import Policy
from fastdhm.data.augment.transforms import DeviceTransform
from fastdhm.data.loaders.crops import crop_boxes
from fastdhm.data.loaders.loader import LoaderOptions

TOTAL = 203


@ALL_KINDS
def test_an_epoch_shows_one_sample_in_three_three_times(make, build_raw, kind):
    source, _ = build_raw(SYNTHETIC)
    batches = read(make(kind, batch_size=30, repeats=3), 2)
    assert len(batches) == 6, "as many as without"
    for batch in batches:
        index_B, copy_B = batch.view_B % TOTAL, batch.view_B // TOTAL
        assert np.array_equal(batch.view_B, batch.index_B.numpy())
        assert copy_B.tolist() == [0] * 10 + [1] * 10 + [2] * 10
        assert np.array_equal(index_B, np.tile(index_B[:10], 3))
        assert np.array_equal(batch.target_B.numpy(), source.target_N[index_B])
        assert np.array_equal(batch.image_BHWC.numpy(), source.pixels(index_B))
    assert len({view % TOTAL for batch in batches for view in batch.view_B.tolist()}) == 60
    assert_same(batches[4:], read(make(kind, batch_size=30, repeats=3), 2, 4))


@pytest.mark.slow  # FFCV compiles for each loader
@KINDS
def test_copies_are_cut_anew(make, build_raw, photo_root, kind):
    """The pictures are ramps, so the mean colour of a cut-out tells where its middle was."""
    dataset = f"folder:{photo_root}"
    source, _ = build_raw(dataset)
    (batch, *_) = read(make(kind, dataset, crop="scale", batch_size=12, repeats=2), 5)
    index_B = batch.view_B % len(source)
    width, height = np.array([source.image(int(i)).size for i in index_B]).T
    _, left, _, w = crop_boxes("scale", height, width, batch.view_B, 5, 0).T
    means = batch.image_BHWC.float().mean(dim=(1, 2)).numpy()
    assert np.abs(means[:, 0] - 255 * (left + (w - 1) / 2) / (width - 1)).max() < 2.5
    assert (left[:6] != left[6:]).any()


@ALL_KINDS
def test_augmented_batches_are_the_same_by_every_loader(make, kind):
    augmentation = Augmentation(policy=Policy(2, None), jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2, erase=0.5)
    transform = DeviceTransform((0.5,) * 3, (0.2,) * 3, pad=4, flip=True, augmentation=augmentation)
    ours, torchs = (read(make(which, batch_size=30, repeats=3), 1)[:2] for which in (kind, "torch"))
    for batch, other in zip(ours, torchs, strict=True):
        done = [transform(each.image_BHWC, each.index_B, 1, view_B=each.view_B) for each in (batch, other)]
        assert torch.equal(*done)
        assert not torch.equal(done[0][:10], done[0][10:20]), "each copy has draws of its own"


@pytest.mark.parametrize("repeats", [2, 3, 5])
@pytest.mark.parametrize("subset", [None, np.arange(0, TOTAL, 2)], ids=["all", "subset"])
def test_processes_share_the_batches_of_one(repeats, subset):
    options = LoaderOptions(**{**OPTIONS, "batch_size": 24}, repeats=repeats, parts=2, samples_S=subset)
    whole = options.epoch_batches(TOTAL, 3, 0)
    shares = [dataclasses.replace(options, share=(n, 3), samples_S=subset).epoch_batches(TOTAL, 3, 0) for n in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(np.concatenate(parts)) == sorted(batch)
    views = np.concatenate(whole)
    assert len(np.unique(views)) == len(views)
    counts = np.unique(views % TOTAL, return_counts=True)[1]
    assert counts.max() == repeats and (counts < repeats).sum() <= 1
    assert subset is None or set(views % TOTAL) <= {*subset}


def test_without_repeats_nothing_changes():
    options = LoaderOptions(**OPTIONS)
    assert all((batch < TOTAL).all() for batch in options.epoch_batches(TOTAL, 0, 0))
