"""A part of the training images: balanced, fixed, nested, and the same to every loader."""

import numpy as np
import pytest

from fastdhm.data import DataOptions, open_loaders
from fastdhm.data.loaders.build import build_loader, pick_kind
from fastdhm.data.loaders.loader import LoaderOptions
from fastdhm.data.sources.subset import balanced_subset
from fastdhm.data.sources.synthetic import SyntheticSource
from fastdhm.errors import UserError

KINDS = ["torch", "resident", *(["ffcv"] if pick_kind("auto")[0] == "ffcv" else [])]
UNEVEN_N = np.repeat([0, 1, 2], [50, 4, 30])


@pytest.mark.parametrize(("count", "sizes"), [(3, [1, 1, 1]), (12, [4, 4, 4]), (20, [8, 4, 8]), (84, [50, 4, 30])])
def test_classes_differ_by_one_as_far_as_they_have_images(count, sizes):
    taken_S = balanced_subset(UNEVEN_N, 3, count)
    assert np.array_equal(taken_S, np.unique(taken_S))
    assert np.bincount(UNEVEN_N[taken_S]).tolist() == sizes


def test_an_odd_number_is_balanced_to_one_image():
    target_N = np.arange(1000) % 7
    sizes = np.bincount(target_N[balanced_subset(target_N, 7, 100)])
    assert sizes.sum() == 100 and sizes.max() - sizes.min() == 1


def test_a_smaller_subset_is_part_of_a_larger_and_neither_the_first_images():
    small, large = (balanced_subset(UNEVEN_N, 3, count) for count in (9, 30))
    assert set(small) < set(large)
    assert small.tolist() != [0, 1, 2, 50, 51, 52, 54, 55, 56]


@pytest.mark.parametrize("count", [2, 85])
def test_an_impossible_size_is_refused(count):
    with pytest.raises(
        UserError, match=f"subset is {count}: must be at least 3, one image for each class, and at most 84"
    ):
        balanced_subset(UNEVEN_N, 3, count)


@pytest.mark.parametrize("kind", KINDS)
def test_every_loader_gives_it_whatever_the_seed(kind, tmp_path):
    expected = set(balanced_subset(SyntheticSource("train", 60).target_N, 10, 30))
    for seed in (0, 1):
        options = DataOptions(loader=kind, batch_size=10, image_size=32, crop="pad", seed=seed, workers=0, subset=30)
        data = open_loaders("synthetic:60", tmp_path, options, say=lambda _: None)
        try:
            assert (data.train.num_samples, len(data.train), data.val.num_samples) == (30, 3, 15)
            with data.train.epoch(1) as batches:
                order = [i for batch in batches for i in batch.index_B.tolist()]
            assert len(order) == 30 and set(order) == expected
            with data.train.epoch(1, start_batch=2) as batches:
                assert [i for batch in batches for i in batch.index_B.tolist()] == order[20:]
        finally:
            data.close()


def test_a_batch_larger_than_the_subset_is_refused():
    source = SyntheticSource("train", 60)
    options = LoaderOptions(batch_size=40, image_size=32, drop_last=True, subset=30)
    with pytest.raises(UserError, match="batch size 40 is larger than the 30 training images"):
        build_loader("torch", options, source=source)
