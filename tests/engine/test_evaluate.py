"""How correct predictions are counted, and on which images it is said they were."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastdhm.commands.evaluate import _print
from fastdhm.config import TrainConfig
from fastdhm.data.augment.transforms import DeviceTransform
from fastdhm.data.loaders.loader import Batch
from fastdhm.engine import evaluate as evaluation
from fastdhm.engine.evaluate import Errors, Kept, count_correct
from fastdhm.engine.saved.judged import is_chosen, judged_images, judged_on
from fastdhm.per_class.measures import NoAnswer
from fastdhm.system.console import Console


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
    for wrong in ("nan", "inf", "-inf"):  # one logit of another class
        assert count_correct(torch.tensor([[[1.0, 0.0, float(wrong)]]]), torch.tensor([0]), 5).tolist() == [0]


def answers_to(logits_MBK, target_B):
    kept, rows = Kept(), torch.arange(len(target_B)).split(3)
    for index_b in rows:
        kept.add(logits_MBK[:, index_b], Batch(torch.empty(0), target_B[index_b], index_b))
    return kept.answers(SimpleNamespace(num_samples=len(target_B)), logits_MBK.shape[2])


def test_answers_agree_with_the_errors_and_ties_go_to_the_first_class():
    generator = torch.Generator().manual_seed(0)
    logits_MBK = torch.randint(3, (2, 50, 4), generator=generator).float()  # many are equal
    target_B = torch.randint(4, (50,), generator=generator)
    for logits_BK, answers in zip(logits_MBK, answers_to(logits_MBK, target_B), strict=True):
        right = (answers.said_N == answers.target_N).sum()
        assert right == count_correct(logits_BK[None], target_B, 1).item() and answers.index_N.tolist() == [*range(50)]
        chance_BK = logits_BK.softmax(1)
        assert answers.confidence_N.tolist() == chance_BK.amax(1).tolist()
        assert answers.true_N.tolist() == chance_BK[torch.arange(50), target_B].tolist()


def test_answers_of_a_network_that_diverged_are_refused():
    logits_MBK = torch.zeros(1, 4, 3)
    logits_MBK[0, 2, 1] = float("nan")
    with pytest.raises(NoAnswer, match="logits of 1 of 4 images are NaN"):
        answers_to(logits_MBK, torch.zeros(4, dtype=torch.int64))


def test_a_batch_of_many_logits_goes_through_in_parts(monkeypatch):
    """Errors and answers are those of the whole batch."""
    loader = SyntheticLoader(12)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 7))
    transform = DeviceTransform((0.5,) * 3, (0.5,) * 3)
    seen, results = [], []
    network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for size in (2**28, 3 * 7 * 4):
        monkeypatch.setattr(evaluation, "LOGITS_BYTES", size)
        monkeypatch.setattr(evaluation, "ROWS_BYTES", size // 2)  # of three images one at a time
        kept = Kept()
        errors = evaluation.evaluate(network, loader, transform, torch.device("cpu"), torch.float32, 8, kept=kept)
        results.append((errors, kept.answers(loader, 7)[0].said_N.tolist()))
    assert seen == [12, 3, 3, 3, 3]
    (whole, said), (parts, said_in_parts) = results
    assert parts.top1_M == whole.top1_M and parts.ce_M == pytest.approx(whole.ce_M, rel=1e-6) and said_in_parts == said


class SyntheticLoader:
    """One batch of noise."""

    def __init__(self, images):
        self.num_samples = images

    def __len__(self):
        return 1

    def epoch(self, epoch, start_batch=0):
        generator = torch.Generator().manual_seed(0)
        image_BHWC = torch.randint(256, (self.num_samples, 8, 8, 3), dtype=torch.uint8, generator=generator)
        index_B = torch.arange(self.num_samples)
        return nullcontext(iter([Batch(image_BHWC, index_B % 7, index_B)]))


def test_five_classes_have_no_top_5_error(capsys):
    """The five likeliest are all there are: 0% of nothing."""
    assert Errors([25.0], [None], [0.5], 8).scalars(("B0",)) == {"val_error/B0": 25.0, "val_ce/B0": 0.5}
    results = {"B0": {"top1_error": 25.0, "top5_error": None}}
    _print(results, ["validation error"], Console(stderr=True), as_json=True)
    assert json.loads(capsys.readouterr().out) == results
    _print(results, ["validation error"], Console(), as_json=False)
    assert [word for word in capsys.readouterr().out.split() if word in ("25.0000", "-", "0.0000")] == ["25.0000", "-"]


@pytest.mark.parametrize(
    ("dataset", "kind", "images"),
    [
        ("cifar100", "validation", "the test images of cifar100"),
        ("fashion-mnist", "validation", "the test images of fashion-mnist"),
        ("imagenet", "validation", "val of imagenet"),
        ("folder:/data/my photos", "validation", "val of my photos"),
        ("synthetic:40", "validation", "drawn images that it does not train on"),
        ("market1501", "seen-image", "some of the images that it trains on"),
    ],
)
def test_what_an_error_is_measured_on_is_said(dataset, kind, images):
    config = TrainConfig(dataset=dataset)
    assert (judged_on(config), judged_images(config)) == (kind, images)


def test_people_held_out_are_validation():
    config = TrainConfig(dataset="market1501", hold_out=True)
    assert (judged_on(config), judged_images(config)) == ("validation", "images held out of training")


def test_an_epoch_chosen_by_its_own_error_is_told(tmp_path):
    best, last = TrainConfig(keep="best"), TrainConfig()
    (tmp_path / "best.pt").touch()
    assert is_chosen(tmp_path, best) and is_chosen(tmp_path / "network.safetensors", best)
    assert is_chosen(tmp_path / "best.pt", last), "whoever names it chooses"
    assert not is_chosen(tmp_path, last) and not is_chosen(tmp_path / "last.pt", best)
