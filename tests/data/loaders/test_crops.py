import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from fastdhm.data.loaders.crops import CROPS, SCALE, STRETCHING, crop_boxes, evaluation_crop, height_width
from fastdhm.errors import UserError

INDEX = np.arange(4000)


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize(("height", "width"), [(224, 224), (375, 500), (500, 12), (1, 1), (2, 900)])
@pytest.mark.parametrize("aspect", [1.0, 0.5, 3.0], ids=["square", "tall", "wide"])
def test_boxes_lie_inside(crop, height, width, aspect):
    top, left, h, w = crop_boxes(crop, np.full(4000, height), np.full(4000, width), INDEX, 3, 0, 0.875, aspect).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    if crop in ("pad", "shift", "center"):
        assert (np.abs(h - w / aspect) <= max(1, 1 / aspect)).all()
        assert aspect != 1 or (h == w).all()


def test_center_is_resize_256_and_crop_224():
    assert crop_boxes("center", [256], [320], [0], 0, 0, 224 / 256).tolist() == [[16, 48, 224, 224]]
    assert crop_boxes("center", [28], [28], [0], 0, 0).tolist() == [[0, 0, 28, 28]]


def test_center_has_the_shape_of_the_output():
    assert crop_boxes("center", [256, 100], [320, 400], [0, 1], 0, 0, 0.875, 0.5).tolist() == [
        [16, 104, 224, 112],
        [6, 178, 88, 44],
    ]
    assert crop_boxes("pad", [256], [128], [0], 0, 0, 0.875, 0.5).tolist() == [[0, 0, 256, 128]]


def test_whole_is_the_image_whatever_its_shape():
    assert crop_boxes("whole", [256, 7], [320, 900], [0, 1], 2, 0, 0.875, 0.5).tolist() == [
        [0, 0, 256, 320],
        [0, 0, 7, 900],
    ]


def test_enlarge_is_half_the_time_an_eighth_larger_and_cropped():
    """Market-1501's 128 x 64: the whole, or 114 x 57 (128 / 1.125 = 113.8) in any of 15 x 8 places alike."""
    box = crop_boxes("enlarge", np.full(4000, 128), np.full(4000, 64), INDEX, 0, 0, 0.875, 0.5)
    whole = (box == (0, 0, 128, 64)).all(axis=1)
    assert abs(whole.sum() - 2000) < 3.3 * np.sqrt(1000)  # binomial at p = 0.001
    top, left, h, w = box[~whole].T
    assert set(h) == {114}
    assert set(w) == {57}
    for place, places, limit in ((top, 15, 36.1), (left, 8, 24.3)):  # chi-square at p = 0.001
        counts = np.bincount(place, minlength=places)
        assert len(counts) == places
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < limit


def test_evaluation_sees_what_training_stretches_whole():
    assert {crop for crop in CROPS if evaluation_crop(crop) == "whole"} == set(STRETCHING)


@pytest.mark.parametrize("size", [0, -1, (256,), (256, 0), (256, 128.0), (1, 2, 3), "256", None], ids=str)
def test_image_sizes_are_pixels(size):
    with pytest.raises(UserError, match="image size"):
        height_width(size)


def test_image_size_is_a_side_or_height_and_width():
    assert height_width(32) == (32, 32)
    assert height_width([256, 128]) == (256, 128)


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


def test_enlarge_depends_on_seed_epoch_and_index_only():
    def boxes(index, epoch, seed):
        return crop_boxes("enlarge", np.full(len(index), 400), np.full(len(index), 200), index, epoch, seed)

    here = boxes(INDEX, 3, 7)
    assert np.array_equal(here[100:110], boxes(INDEX[100:110], 3, 7))
    for other in (boxes(INDEX, 4, 7), boxes(INDEX, 3, 8), boxes(INDEX + 5000, 3, 7)):
        assert np.mean((here == other).all(axis=1)) < 0.3  # a quarter are whole in both


def test_scale_varies_around_the_shape_of_the_output():
    _, _, h, w = crop_boxes("scale", np.full(4000, 400), np.full(4000, 200), INDEX, 1, 0, aspect=0.5).T
    assert abs(np.log(w / h).mean() - np.log(0.5)) < 0.02
    assert np.abs(np.log(w / h / 0.5)).max() < np.log(4 / 3) + 0.05


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
