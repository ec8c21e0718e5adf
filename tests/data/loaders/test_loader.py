"""What every loader does alike: the samples, their order and crops, errors, and what it leaves behind."""

import gc
import multiprocessing
import os
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import ALL_KINDS, KINDS, SYNTHETIC, assert_same, read

from fastdhm.data.loaders.crops import crop_boxes
from fastdhm.errors import UserError


@ALL_KINDS
def test_batches_hold_the_right_samples(make, build_raw, kind):
    source, _ = build_raw(SYNTHETIC)
    loader = make(kind)
    batches = read(loader, 0)
    assert len(batches) == len(loader) == 6
    assert loader.num_samples == 203
    for batch in batches:
        assert batch.image_BHWC.dtype == torch.uint8
        assert batch.target_B.dtype == batch.index_B.dtype == torch.int64
        assert batch.image_BHWC.shape == (32, 32, 32, 3)
        assert np.array_equal(batch.image_BHWC.numpy(), source.pixels(batch.index_B.numpy()))
        assert np.array_equal(batch.target_B.numpy(), source.target_N[batch.index_B.numpy()])
    index = torch.cat([batch.index_B for batch in batches])
    assert len(index.unique()) == len(index)


@ALL_KINDS
def test_validation_keeps_order_and_the_last_partial_batch(make, kind):
    batches = read(make(kind, crop="center", shuffle=False, drop_last=False), 0)
    assert [len(batch.target_B) for batch in batches] == [32] * 6 + [11]
    assert torch.equal(torch.cat([batch.index_B for batch in batches]), torch.arange(203))


@ALL_KINDS
def test_batch_of_one_keeps_its_dimension(make, kind):
    batch = read(make(kind, batch_size=101, crop="center", shuffle=False, drop_last=False), 0)[-1]
    assert (batch.image_BHWC.shape, batch.target_B.shape, batch.index_B.shape) == ((1, 32, 32, 3), (1,), (1,))


@ALL_KINDS
def test_epochs_and_seeds_differ_and_repeat(make, kind):
    loader = make(kind)
    first, second = read(loader, 0), read(loader, 1)
    assert not torch.equal(first[0].index_B, second[0].index_B)
    assert_same(first, read(loader, 0))
    assert not torch.equal(first[0].index_B, read(make(kind, seed=1), 0)[0].index_B)


@KINDS
@pytest.mark.parametrize("crop", ["pad", "scale", "shift", "center"])
def test_worker_count_does_not_matter(make, photo_root, kind, crop):
    options = {"dataset": f"folder:{photo_root}", "batch_size": 5, "crop": crop, "crop_ratio": 0.875}
    one, two = (read(make(kind, workers=workers, **options), 2) for workers in (1, 2))
    assert_same(one, two)


@ALL_KINDS
@pytest.mark.parametrize("start", [0, 1, 4])
def test_start_batch_goes_on_where_the_epoch_was_left(make, kind, start):
    assert_same(read(make(kind), 3)[start:], read(make(kind), 3, start))
    assert read(make(kind), 3, 6) == []


@KINDS
def test_start_batch_with_crops(make, photo_root, kind):
    options = {"dataset": f"folder:{photo_root}", "batch_size": 5, "crop": "scale"}
    assert_same(read(make(kind, **options), 3)[2:], read(make(kind, **options), 3, 2))


@ALL_KINDS
def test_start_batch_outside_the_epoch(make, kind):
    with pytest.raises(ValueError, match="start_batch 7"):
        read(make(kind), 0, 7)


@KINDS
@pytest.mark.parametrize(
    ("crop", "image_size"),
    [
        ("scale", 32), ("shift", 32), ("center", 32),
        ("scale", (48, 24)), ("shift", (20, 40)), ("enlarge", (64, 32)), ("whole", (128, 64)),
    ],
    ids=str,
)  # fmt: skip
def test_boxes_are_cut_and_resized(make, build_raw, photo_root, kind, crop, image_size):
    """The pictures are ramps, so the mean colour of a cut-out tells where its middle was."""
    dataset = f"folder:{photo_root}"
    source, _ = build_raw(dataset)
    (batch,) = read(make(kind, dataset, crop=crop, crop_ratio=0.875, batch_size=24, image_size=image_size), 5)
    out_height, out_width = batch.image_BHWC.shape[1:3]
    assert image_size in (out_height, (out_height, out_width))
    size_B2 = np.array([source.image(int(i)).size for i in batch.index_B])
    width, height = size_B2.T
    top, left, h, w = crop_boxes(crop, height, width, batch.index_B.numpy(), 5, 0, 0.875, out_width / out_height).T
    means = batch.image_BHWC.float().mean(dim=(1, 2)).numpy()
    assert np.abs(means[:, 0] - 255 * (left + (w - 1) / 2) / (width - 1)).max() < 2.5
    assert np.abs(means[:, 1] - 255 * (top + (h - 1) / 2) / (height - 1)).max() < 2.5


@KINDS
@pytest.mark.parametrize("crop", ["scale", "center"])
def test_odd_images_load(make, odd_root, kind, crop):
    batches = read(make(kind, f"folder:{odd_root}", crop=crop, image_size=20, batch_size=28), 0)
    assert batches[0].image_BHWC.shape == (28, 20, 20, 3)


@ALL_KINDS
def test_global_generators_are_left_alone(make, kind):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    read(make(kind), 0)
    read(make(kind, workers=2), 0)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


@ALL_KINDS
def test_batches_are_the_readers_to_keep(make, kind):
    loader = make(kind, batch_size=8)
    with loader.epoch(0) as batches:
        copies = [(batch, batch.image_BHWC.clone()) for batch in batches]
    assert all(torch.equal(batch.image_BHWC, copy) for batch, copy in copies)


@ALL_KINDS
def test_two_loaders_at_once_do_not_disturb_each_other(make, kind):
    train, val = make(kind, workers=2), make(kind, workers=2, crop="center", shuffle=False, drop_last=False)
    alone = read(train, 0), read(val, 0)
    with train.epoch(0) as first, val.epoch(0) as second:
        pairs = list(zip(first, second, strict=False))
    assert_same([a for a, _ in pairs], alone[0])
    assert_same([b for _, b in pairs], alone[1][: len(pairs)])


@KINDS
def test_leaving_early_leaves_nothing_running(make, photo_root, kind):
    loader = make(kind, f"folder:{photo_root}", batch_size=2, workers=2)
    read(loader, 0)
    threads, processes = set(threading.enumerate()), set(multiprocessing.active_children())
    for epoch in range(4):
        with loader.epoch(epoch) as batches:
            next(batches)
    with pytest.raises(ZeroDivisionError), loader.epoch(4) as batches:
        1 / 0  # noqa: B018
    with loader.epoch(5):
        pass
    deadline = time.monotonic() + 120  # a queue's own thread ends a moment after its queue
    while not set(threading.enumerate()) <= threads and time.monotonic() < deadline:
        time.sleep(0.02)
    assert set(threading.enumerate()) <= threads
    assert set(multiprocessing.active_children()) <= processes


@ALL_KINDS
@pytest.mark.parametrize(
    "whole", [pytest.param(True, id="read whole"), pytest.param(False, id="left early", marks=pytest.mark.slow)]
)
def test_many_epochs_leave_no_memory_behind(make, kind, whole):
    """An epoch's images are 2.4 MiB. Were they kept, or a thread's buffers, the process would grow by 14 MiB or more in
    every twelve epochs. What the allocator takes once, and keeps for the next threads, does not grow on."""
    loader = make(kind, "synthetic:800", workers=1 if kind == "ffcv" else 0, batch_size=400)

    def epochs(first, last):
        for epoch in range(first, last):
            with loader.epoch(epoch) as batches:
                assert len(list(batches) if whole else [next(batches)]) == (2 if whole else 1)
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), tracemalloc.get_traced_memory()[0], threading.active_count()

    epochs(0, 3)
    tracemalloc.start()
    try:
        first = after = epochs(3, 5)
        for begin in range(5, 5 + 4 * 12, 12):
            before, after = after, epochs(begin, begin + 12)
            if after[0] - before[0] < 8 << 20:
                break
    finally:
        tracemalloc.stop()
    assert after[0] - before[0] < 8 << 20
    assert after[1] - before[1] < 512 << 10  # what Python itself keeps differs by version; one epoch's images are more
    assert after[2] <= first[2]


@ALL_KINDS
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 204}, "batch size 204 is larger than the 203 training images"),
        ({"batch_size": 0}, "batch size 0"),
        ({"image_size": -1}, "image size -1"),
        ({"image_size": (32, 0)}, r"image size \(32, 0\)"),
        ({"crop": "middle"}, "unknown crop 'middle'"),
        ({"crop_ratio": 0}, "crop ratio 0"),
        ({"workers": -1}, "workers -1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_mistakes(make, kind, values, message):
    with pytest.raises(UserError, match=message):
        make(kind, **values)
