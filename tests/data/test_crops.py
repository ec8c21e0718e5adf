import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from fastdhm.data.crops import CROPS, SCALE, crop_boxes, epoch_order

INDEX = np.arange(4000)


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize(("height", "width"), [(224, 224), (375, 500), (500, 12), (1, 1), (2, 900)])
def test_boxes_lie_inside(crop, height, width):
    top, left, h, w = crop_boxes(crop, np.full(4000, height), np.full(4000, width), INDEX, 3, 0, 0.875).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    if crop != "scale":
        assert (h == w).all()


def test_center_is_resize_256_and_crop_224():
    assert crop_boxes("center", [256], [320], [0], 0, 0, 224 / 256).tolist() == [[16, 48, 224, 224]]
    assert crop_boxes("center", [28], [28], [0], 0, 0).tolist() == [[0, 0, 28, 28]]


@pytest.mark.parametrize("crop", ["scale", "shift"])
def test_boxes_depend_on_seed_epoch_and_index_only(crop):
    def boxes(index, epoch, seed):
        return crop_boxes(crop, np.full(len(index), 300), np.full(len(index), 400), index, epoch, seed, 0.875)

    here = boxes(INDEX, 3, 7)
    assert np.array_equal(here[100:110], boxes(INDEX[100:110], 3, 7))
    for other in (boxes(INDEX, 4, 7), boxes(INDEX, 3, 8), boxes(INDEX + 5000, 3, 7)):
        assert np.mean((here == other).all(axis=1)) < 0.01


def test_shift_reaches_every_place_alike():
    top, left, _, _ = crop_boxes("shift", np.full(4000, 16), np.full(4000, 16), INDEX, 0, 0, 0.5).T
    for place in (top, left):
        counts = np.bincount(place, minlength=9)
        assert len(counts) == 9
        assert ((counts - 4000 / 9) ** 2 / (4000 / 9)).sum() < 26.1  # chi-square with 8 degrees of freedom, p = 0.001


@pytest.mark.parametrize(("height", "width"), [(300, 400), (200, 90), (40, 400)], ids=["usual", "tall", "never-fits"])
def test_scale_has_the_distribution_of_random_resized_crop(height, width):
    """Two-sample Kolmogorov-Smirnov at p = 0.001, for each of what a box is made of."""
    ours = crop_boxes("scale", np.full(4000, height), np.full(4000, width), INDEX, 1, 0).astype(float)
    torch.manual_seed(0)
    transform, image = v2.RandomResizedCrop(1, scale=SCALE), [torch.empty(3, height, width)]
    params = [transform.make_params(image) for _ in range(4000)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in params], dtype=float)
    measures = (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0] / np.maximum(1, height - b[:, 2]),
        lambda b: b[:, 1] / np.maximum(1, width - b[:, 3]),
    )
    for measure in measures:
        a, b = np.sort(measure(ours)), np.sort(measure(theirs))
        at = np.concatenate([a, b])
        gap = np.abs(np.searchsorted(a, at, "right") - np.searchsorted(b, at, "right")).max() / 4000
        assert gap < 1.95 * np.sqrt(2 / 4000)


def test_epoch_order_is_a_permutation_of_its_own():
    orders = [epoch_order(1000, epoch, seed, True) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(orders[0], epoch_order(1000, 0, 0, True))
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    assert np.array_equal(epoch_order(5, 3, 9, False), np.arange(5))
