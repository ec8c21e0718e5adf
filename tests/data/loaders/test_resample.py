import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from fastdhm.data.loaders.resample import make_average, make_resample

SIZES = [
    ((16, 8), (32, 16)),
    ((14, 7), (32, 16)),
    ((20, 9), (16, 16)),
    ((50, 40), (16, 8)),
    ((1, 1), (8, 4)),
    ((2, 90), (9, 5)),
]


@pytest.mark.parametrize(("before", "after"), SIZES, ids=str)
def test_is_torchs_antialiased_bilinear(before, after):
    image_HWC = np.random.default_rng(0).integers(0, 256, (before[0] + 5, before[1] + 7, 3), dtype=np.uint8)
    out_HWC = np.full((*after, 3), 99, np.uint8)
    make_resample(lambda function: function)(image_HWC, 2, 3, *before, out_HWC)
    box_CHW = torch.from_numpy(image_HWC[2 : 2 + before[0], 3 : 3 + before[1]]).permute(2, 0, 1)
    exact_CHW = functional.resize(box_CHW.double(), list(after), antialias=True)
    assert (torch.from_numpy(out_HWC).permute(2, 0, 1) - exact_CHW).abs().max() < 0.502


def test_flat_stays_flat():
    image_HWC, out_HWC = np.full((9, 7, 3), 255, np.uint8), np.empty((31, 4, 3), np.uint8)
    make_resample(lambda function: function)(image_HWC, 0, 0, 9, 7, out_HWC)
    assert (out_HWC == 255).all()


@pytest.mark.parametrize(("before", "grows"), [((8, 8), True), ((40, 8), True), ((16, 16), False), ((40, 30), False)])
def test_a_box_that_grows_is_not_copied_pixel_by_pixel(before, grows):
    """OpenCV averages areas only where both sides shrink."""
    image_HWC = np.random.default_rng(0).integers(0, 256, (*before, 3), dtype=np.uint8)
    calls, out_HWC, expected_HWC = [], np.empty((16, 16, 3), np.uint8), np.empty((16, 16, 3), np.uint8)
    make_average.__wrapped__(lambda function: function, lambda *_: calls.append(1))(image_HWC, 0, 0, *before, out_HWC)
    assert bool(calls) != grows
    if grows:
        make_resample(lambda function: function)(image_HWC, 0, 0, *before, expected_HWC)
        assert np.array_equal(out_HWC, expected_HWC)
