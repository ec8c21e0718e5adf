"""Random erasing against torchvision's: how often, how large, and with what.

Legend: B views.
"""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from fastdhm.data.augment.erase import erase, erased_boxes

SIZE = (32, 24)


def test_boxes_are_distributed_as_torchvisions():
    boxes = np.array([*erased_boxes(1.0, np.arange(8000), 0, 0, SIZE).values()])
    torch.manual_seed(0)
    transform = v2.RandomErasing(p=1)
    drawn = [transform.make_params([torch.zeros(3, *SIZE)]) for _ in range(8000)]
    theirs = np.array([[each[name] for name in "ijhw"] for each in drawn])
    assert len(boxes) == 8000
    for ours, their in zip(boxes.T, theirs.T, strict=True):
        assert ours.mean() == pytest.approx(their.mean(), abs=5 * their.std() / np.sqrt(4000))
        assert ours.std() == pytest.approx(their.std(), rel=0.05)
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (top + height <= SIZE[0]).all()
    assert (left >= 0).all() and (left + width <= SIZE[1]).all()


def test_as_many_as_asked_for_by_view_alone():
    boxes = erased_boxes(0.25, np.arange(8000), 2, 1, SIZE)
    assert len(boxes) / 8000 == pytest.approx(0.25, abs=0.02)
    later = erased_boxes(0.25, np.arange(4000, 8000), 2, 1, SIZE)
    assert {row + 4000: box for row, box in later.items()} == {row: box for row, box in boxes.items() if row >= 4000}


def test_an_image_too_small_stays_whole():
    assert erased_boxes(1.0, np.arange(50), 0, 0, (1, 1)) == {}


def test_boxes_become_the_mean():
    image_BCHW = torch.ones(3, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    erase(image_BCHW, {1: (2, 3, 4, 5)})
    assert image_BCHW[1].sum() == 3 * (64 - 20) and image_BCHW[1, :, 2:6, 3:8].abs().sum() == 0
    assert image_BCHW[[0, 2]].min() == 1
