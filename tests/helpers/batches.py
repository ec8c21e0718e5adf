"""A loader's batches: reading them, whether two readings are the same, and the options of a small loader."""

import pytest
import torch

ALL_KINDS = pytest.mark.parametrize("kind", ["ffcv", "torch", "resident"], indirect=True)
KINDS = pytest.mark.parametrize("kind", ["ffcv", "torch"], indirect=True)
SYNTHETIC = "synthetic:203"
OPTIONS = {
    "batch_size": 32,
    "image_size": 32,
    "crop": "pad",
    "crop_ratio": 1.0,
    "seed": 0,
    "workers": 1,
    "shuffle": True,
    "drop_last": True,
}


def read(loader, epoch=0, start_batch=0):
    with loader.epoch(epoch, start_batch) as batches:
        return list(batches)


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.index_B, other.index_B)
        assert torch.equal(batch.target_B, other.target_B)
        assert torch.equal(batch.image_BHWC, other.image_BHWC)
