import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from fastdhm.data.loaders.resample import make_resample

SIZES = [
    ((16, 8), (32, 16)),
    ((14, 7), (32, 16)),
    ((20, 9), (16, 16)),
    ((50, 40), (16, 8)),
    ((1, 1), (8, 4)),
    ((2, 90), (9, 5)),
    ((12, 12), (12, 6)),
    ((9, 8), (9, 8)),
    ((3, 200), (3, 7)),
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
