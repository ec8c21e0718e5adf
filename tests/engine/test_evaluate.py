"""How correct predictions are counted."""

import torch

from fastdhm.engine.evaluate import count_correct


def test_against_topk():
    generator = torch.Generator().manual_seed(0)
    logits_MBK = torch.randn(3, 200, 12, generator=generator)
    target_B = torch.randint(12, (200,), generator=generator)
    for k in (1, 5):
        expected = (logits_MBK.topk(k).indices == target_B[None, :, None]).any(-1).sum(1)
        assert count_correct(logits_MBK, target_B, k).tolist() == expected.tolist()


def test_ties_go_to_the_first_class():
    logits_MBK = torch.zeros(1, 3, 4)
    assert count_correct(logits_MBK, torch.tensor([0, 1, 3]), 1).tolist() == [1]
    assert count_correct(logits_MBK, torch.tensor([0, 1, 3]), 2).tolist() == [2]


def test_fewer_classes_than_five():
    assert count_correct(torch.randn(2, 6, 3), torch.zeros(6, dtype=torch.int64), 5).tolist() == [6, 6]


def test_nan_is_never_right():
    assert count_correct(torch.full((1, 2, 3), float("nan")), torch.tensor([0, 1]), 5).tolist() == [0]
