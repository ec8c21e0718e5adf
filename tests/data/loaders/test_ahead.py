import pytest
import torch

from fastdhm.data.loaders import ahead
from fastdhm.data.loaders.ahead import copied_ahead
from fastdhm.data.loaders.loader import Batch


def batches(count, asked, device="cpu"):
    for i in range(count):
        asked.append(i)
        image_BHWC = torch.full((2, 3, 3, 3), i, dtype=torch.uint8, device=device)
        yield Batch(image_BHWC, torch.tensor([i, i], device=device), torch.tensor([2 * i, 2 * i + 1], device=device))


def test_on_a_cpu_batches_come_as_they_are():
    made = list(batches(3, []))
    given = list(copied_ahead(iter(made), torch.device("cpu")))
    assert all(a is b for a, b in zip(given, made, strict=True))


def test_all_epochs_copy_on_one_stream(monkeypatch):
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or object())
    ahead._copy_stream.cache_clear()
    try:
        assert ahead._copy_stream(torch.device("cuda", 0)) is ahead._copy_stream(torch.device("cuda", 0))
        ahead._copy_stream(torch.device("cuda", 1))
    finally:
        ahead._copy_stream.cache_clear()
    assert made == [torch.device("cuda", 0), torch.device("cuda", 1)]


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_on_a_gpu_they_are_copied_one_ahead(where, count):
    asked, seen = [], []
    for batch in copied_ahead(batches(count, asked, where), torch.device("cuda")):
        assert batch.image_BHWC.is_cuda and batch.target_B.is_cuda and batch.index_B.is_cuda
        seen.append((batch.image_BHWC.unique().tolist(), batch.target_B.tolist(), batch.index_B.tolist()))
        if where == "cpu":
            assert len(asked) == min(count, len(seen) + 1)
    assert seen == [([i], [i, i], [2 * i, 2 * i + 1]) for i in range(count)]


@pytest.mark.gpu
def test_the_host_waits_for_no_copy():
    pinned = [torch.zeros(64, 224, 224, 3, dtype=torch.uint8).pin_memory() for _ in range(4)]
    whole = (Batch(image, torch.zeros(64).long().pin_memory(), torch.arange(64).pin_memory()) for image in pinned)
    torch.cuda.set_sync_debug_mode("error")
    try:
        total = sum(batch.image_BHWC.float().sum() for batch in copied_ahead(whole, torch.device("cuda")))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert total.item() == 0
