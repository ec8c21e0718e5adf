"""Mixed, weighed and balanced labels of a run: what the loss gets, and that a run has the same however it runs."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastdhm.cli import main
from fastdhm.config import TrainConfig
from fastdhm.data.augment.mix import draw_mix
from fastdhm.data.loaders.ffcv_library import why_not
from fastdhm.data.loaders.loader import Batch
from fastdhm.data.sources.synthetic import SyntheticSource
from fastdhm.engine.labels import Labelling
from fastdhm.engine.run import Run
from fastdhm.engine.saved.checkpoint import read_config
from fastdhm.engine.step import make_compute
from fastdhm.ops.mimic_loss import mimic_loss
from runs import assert_same_state, command

CLASSES = tuple("abcde")
MIXED = ["--mixup", "0.4", "--cutmix", "1", "--label-smoothing", "0.1"]
KINDS = {
    "mixup": {"mixup": 0.3},
    "cutmix": {"cutmix": 1.0},
    "both": {"mixup": 0.3, "cutmix": 1.0, "mix_off_epochs": 1},
    "weighed": {"class_weights": "auto"},
    "mixed_and_weighed": {"mixup": 0.3, "class_weights": dict(zip(CLASSES, (1.0, 0.0, 4.0, 0.5, 2.0), strict=True))},
}


def labelling(**settings):
    found = Labelling(TrainConfig(epochs=3, **settings), len(CLASSES), torch.device("cpu"))
    found.learn_from(np.repeat(np.arange(5), [40, 20, 10, 5, 5]), CLASSES)
    return found


def batch_of(target_B):
    image_BHWC = torch.randint(256, (len(target_B), 8, 8, 3), dtype=torch.uint8)
    return Batch(image_BHWC, target_B, torch.arange(len(target_B)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_torchs_of_soft_targets_and_weights(kind, smoothing):
    generator = torch.Generator().manual_seed(1)
    target_B = torch.randint(5, (12,), generator=generator)
    logits_MBK = torch.randn(2, 12, 5, dtype=torch.float64, generator=generator)
    found = labelling(**KINDS[kind])
    label = found.label(batch_of(target_B), torch.rand(12, 3, 8, 8), 1, 4)
    mix = None if label.target2_B is None else (label.target2_B, label.share_B.double())
    weight_B = None if label.row_weight_B is None else label.row_weight_B.double()
    settings = {"mix": mix, "row_weight_B": weight_B, "label_smoothing": smoothing}
    _, terms_MM = mimic_loss(logits_MBK, target_B, torch.ones(2, 2, dtype=torch.float64), **settings)

    soft_BK = F.one_hot(target_B, 5).double()
    if mix is not None:
        share_B1 = mix[1][:, None]
        soft_BK = share_B1 * soft_BK + (1 - share_B1) * soft_BK.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    weight_K = torch.ones(5).double() if found.weight_K is None else found.weight_K.double()
    weight_B = soft_BK @ weight_K
    for logits_BK, term in zip(logits_MBK, terms_MM.diagonal(), strict=True):
        ce_B = F.cross_entropy(logits_BK, soft_BK, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(term, weight_B @ ce_B / weight_B.sum(), rtol=1e-6, atol=0)
        if mix is None and smoothing == 0:
            torch.testing.assert_close(term, F.cross_entropy(logits_BK, target_B, weight=weight_K), rtol=1e-6, atol=0)


def test_images_and_labels_are_mixed_alike_and_not_in_the_last_epochs():
    found, target_B = labelling(mixup=0.3, mix_off_epochs=1), torch.arange(4)
    for epoch in range(3):
        image_BCHW = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8).clone()
        label = found.label(batch_of(target_B), image_BCHW, epoch, 2)
        share = draw_mix(0.3, 0.0, seed=0, epoch=epoch, batch=2).share if epoch < 2 else 1.0
        assert label.share_B.tolist() == pytest.approx([share] * 4)
        assert label.target2_B.tolist() == [1, 0, 3, 2]
        expected = share * target_B + (1 - share) * label.target2_B
        torch.testing.assert_close(image_BCHW.mean((1, 2, 3)), expected.float())


def test_a_run_that_its_hours_cut_ends_without_mixes_too():
    found, target_B = labelling(mixup=0.3, mix_off_epochs=1), torch.arange(4)
    shares = [found.label(batch_of(target_B), torch.rand(4, 3, 8, 8), 1, 0, end).share_B[0] for end in (2, 3)]
    assert shares[0] == 1 and shares[1] < 1


def test_parts_of_a_batch_weigh_what_their_rows_weigh():
    found = labelling(class_weights="auto", mixup=0.2)
    label = found.label(batch_of(torch.tensor([0, 0, 0, 0, 4, 4, 2, 3])), torch.rand(8, 3, 8, 8), 0, 0)
    parts = label.chunk(2)
    weights = [part.row_weight_B.sum().item() for part in parts]
    assert [part.part_weight.item() for part in parts] == pytest.approx([2 * w / sum(weights) for w in weights])
    (whole,) = label.chunk(1)
    assert whole.part_weight is None


def test_a_mixed_image_is_right_if_its_larger_share_is_named(tmp_path):
    """A network that always names class 1, and pairs of classes 0 and 1."""
    config = TrainConfig(arch="resnet8", mixup=1.0, batch_size=4, device="cpu", precision="float32", epochs=9)
    run = Run(config, tmp_path, CLASSES)

    def forward(image_BCHW, active):
        return F.one_hot(torch.ones(3, len(image_BCHW), dtype=torch.int64), 5).float() * image_BCHW.new_ones(1)

    compute, seen = make_compute(forward, 1.0, 0.0, compiled=False), set()
    for number in range(9):
        label = run.labelling.label(batch_of(torch.tensor([0, 1, 0, 1])), torch.rand(4, 3, 8, 8), 0, number)
        _, _, correct_A = compute(torch.rand(4, 3, 8, 8), label.target_B, torch.ones(3, 3), None, *label.soft)
        assert correct_A.tolist() == [2.0] * 3
        main_B = torch.where(label.share_B < 0.5, label.target2_B, label.target_B)
        seen.add(tuple(main_B.tolist()))
    assert seen == {(0, 1, 0, 1), (1, 0, 1, 0)}


def test_labels_that_are_learnt_are_mixed_and_weighed():
    """The corrupt ones, where a run has such."""
    found = labelling(corrupt_labels=1.0, mixup=0.3, class_weights="auto")
    label = found.label(batch_of(torch.zeros(4, dtype=torch.int64)), torch.rand(4, 3, 8, 8), 0, 0)
    assert label.target_B.tolist() == found.label_N[:4].tolist()
    assert label.target2_B.tolist() == found.label_N[[1, 0, 3, 2]].tolist()
    size_K = torch.bincount(found.label_N, minlength=5)
    torch.testing.assert_close(found.weight_K * size_K, (found.weight_K * size_K).mean().expand(5))


@pytest.mark.parametrize("settings", [{"class_weights": "auto"}, {"balanced_sampling": True}], ids=str)
def test_a_class_without_images_is_refused(settings):
    found = Labelling(TrainConfig(**settings), 5, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"there is no training image of c, e: add some"):
        found.learn_from(np.array([0, 1, 3, 3]), CLASSES)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param([*MIXED, "--class-weights", "auto"], id="mixed"),
        pytest.param(["--balanced-sampling", "true"], id="balanced", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_has_the_same_bits(tmp_path, flags):
    """Stopped in the middle of an epoch; mixed in the first epoch only."""
    flags = ["--epochs", "2", "--log-every", "3", *flags, *(["--mix-off-epochs", "1"] if "--mixup" in flags else [])]
    assert main(command(tmp_path / "whole", *flags)) == 0
    assert main(command(tmp_path / "parts", *flags, "--max-steps", "5")) == 0
    assert main(["train", "--resume", str(tmp_path / "parts")]) == 0
    assert_same_state(tmp_path / "whole" / "last.pt", tmp_path / "parts" / "last.pt", same_best=False)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [MIXED, ["--balanced-sampling", "true"]], ids=["mixed", "balanced"])
def test_loaders_train_the_same_network(tmp_path, flags):
    kinds = ["torch", "resident", *(["ffcv"] if why_not() is None else [])]
    for kind in kinds:
        assert main([*command(tmp_path / kind, "--epochs", "1", "--max-steps", "3", *flags), "--loader", kind]) == 0
    for one, other in pairwise(kinds):
        assert_same_state(tmp_path / one / "last.pt", tmp_path / other / "last.pt")


def test_a_file_of_weights_is_kept_and_not_read_again(tmp_path, capsys):
    path = tmp_path / "weights.yaml"
    classes = SyntheticSource("train", 10).classes
    path.write_text("".join(f"{name}: {1 + i}\n" for i, name in enumerate(classes)))
    assert main(command(tmp_path / "run", "--class-weights", str(path), "--epochs", "1", "--max-steps", "1")) == 0
    assert "classes weighed by 1 to 10" in " ".join(capsys.readouterr().out.split())
    path.unlink()
    assert main(["train", "--resume", str(tmp_path / "run"), "--max-steps", "2"]) == 0
    config = read_config(tmp_path / "run")
    assert config.class_weights == {name: 1.0 + i for i, name in enumerate(classes)}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--mixup", "-0.1"], "mixup is -0.1: must be 0, which is off, or a number from 0.01 to 100"),
        (["--cutmix", "nan"], "cutmix is nan: must be a number"),
        (
            ["--mixup", "0.2", "--batch-size", "5"],
            "batch_size is 5, for pairs to mix: must be a multiple of 2, such as 4",
        ),
        (["--class-weights", "atuo"], "class_weights is atuo: must be auto, a .yaml file or a number for each class"),
        (["--class-weights", "none.yaml"], "none.yaml cannot be read: No such file"),
        (["--class-weights", "{cat: 1}"], "class_weights has 'cat', which is no class of the images"),
        (
            ["--balanced-sampling", "true", "--dataset", "reid-synthetic"],
            "balanced_sampling is true, for reid-synthetic: must be false, as people are told apart by features",
        ),
        (["--class-weights", "{cat: -1}"], "the weight of class 'cat' is -1: must be a number from 0 to 1e+30"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_told_in_a_sentence(tmp_path, capsys, flags, said):
    assert main(command(tmp_path / "run", *flags)) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert error.count(said) == 1
    assert not (tmp_path / "run").exists()


def test_the_plan_says_what_becomes_of_the_labels():
    config = TrainConfig(mixup=0.2, cutmix=1.0, mix_off_epochs=5, balanced_sampling=True, label_smoothing=0.1)
    found = Labelling(config, 5, torch.device("cpu"))
    assert found.describe() == (
        "mixed by mixup 0.2 or cutmix 1, off in the last 5 epochs; as many images of every class; smoothed by 0.1"
    )
    assert not Labelling(TrainConfig(), 5, torch.device("cpu")).describe()
