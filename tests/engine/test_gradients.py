"""Cosines of the branches' gradients at the forks: the definition, and that measuring them changes nothing."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdhm import models
from fastdhm.cli import main
from fastdhm.engine.gradients import cosine_names, gradient_cosines
from fastdhm.engine.labels import Labels
from fastdhm.engine.saved.checkpoint import load_checkpoint
from fastdhm.engine.saved.record import read_log
from fastdhm.engine.sums import TrainingSums

ALL = {
    "grad_cosine/B0-B1@layer1", "grad_cosine/B0-B2@layer1", "grad_cosine/B1-B2@layer1", "grad_cosine/B0-B1@layer2"
}  # fmt: skip


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 16, 16, generator=generator), Labels(torch.randint(0, 10, (6,), generator=generator))


def build(arch: str = "resnet8", **given) -> models.BranchedModel:
    torch.manual_seed(0)
    return models.build(arch, 10, **given)


def soft(labels: Labels) -> torch.Tensor:
    """The labels as probabilities."""
    label_BK = F.one_hot(labels.target_B, 10).float()
    if labels.share_B is None:
        return label_BK
    return label_BK * labels.share_B[:, None] + F.one_hot(labels.target2_B, 10) * (1 - labels.share_B[:, None])


def by_definition(model, image_BCHW, labels, fork: str, pair: tuple[str, str]) -> float:
    """The branches' losses differentiated one by one, through a trunk that runs again for each."""
    gradients = []
    for name in pair:
        kept = []
        hook = model.trunk.get_submodule(fork).register_forward_hook(lambda *args, kept=kept: kept.append(args[2]))
        logits_MBK = model(image_BCHW)
        hook.remove()
        loss_B = F.cross_entropy(logits_MBK[model.branch_names.index(name)], soft(labels), reduction="none")
        loss = loss_B.mean() if labels.row_weight_B is None else loss_B @ labels.row_weight_B
        gradients.append(torch.autograd.grad(loss, kept[0])[0].flatten())
    return float(F.cosine_similarity(*(gradient.double() for gradient in gradients), dim=0, eps=0))


@pytest.mark.parametrize("kind", ["plain", "mixed_and_weighed"])
def test_every_pair_of_paths_at_every_fork(batch, kind):
    model = build()
    if kind != "plain":
        rows = torch.linspace(0.1, 0.9, 6)
        batch = batch[0], Labels(batch[1].target_B, batch[1].target_B.flip(0), rows, 3 * rows.flip(0))
    cosines = gradient_cosines(model, *batch, ("B1", "B2"))
    assert cosines.keys() == ALL and set(cosine_names(model)) > ALL
    for name, cosine in cosines.items():
        pair, fork = name.removeprefix("grad_cosine/").split("@")
        assert float(cosine) == pytest.approx(by_definition(model, *batch, fork, pair.split("-")), abs=1e-5)


@pytest.mark.parametrize(
    ("active", "expected"), [((), set()), (("B1",), {"B0-B1@layer1", "B0-B1@layer2"}), (("B2",), {"B0-B2@layer1"})]
)
def test_only_branches_that_take_part_have_one(batch, active, expected):
    cosines = gradient_cosines(build(), *batch, active)
    assert {name.removeprefix("grad_cosine/") for name in cosines} == expected


def test_equal_branches_agree_and_opposite_ones_do_not(batch):
    """A linear head, one like it, and one that says the opposite of it."""
    pooled, head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()], nn.Linear(4, 2, bias=False)
    like, opposite = copy.deepcopy(head), copy.deepcopy(head)
    with torch.no_grad():
        opposite.weight.neg_()
    branches = {"B1": nn.Sequential(*pooled, like), "B2": nn.Sequential(*pooled, opposite)}
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), *pooled, head)
    model = models.BranchedModel(trunk, branches, dict.fromkeys(branches, "0"))
    cosines = gradient_cosines(model, batch[0], Labels(batch[1].target_B % 2), ("B1", "B2"))
    assert float(cosines["grad_cosine/B0-B1@0"]) == pytest.approx(1, abs=1e-5)
    assert float(cosines["grad_cosine/B0-B2@0"]) < -0.9


def test_it_leaves_no_trace(batch):
    """Statistics, gradients, random numbers, hooks: all as before, with dropout at work."""
    model = build("wrn-10-1", dropout=0.5)
    before, drawn = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    gradient_cosines(model, *batch, ("B1", "B2"))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(model.trunk.layer1._forward_hooks) == 1 and not model._features


def test_a_frozen_stem_has_cosines_too(batch):
    model = build()
    expected = gradient_cosines(model, *batch, ("B1", "B2"))
    model.trunk.requires_grad_(False)
    torch.testing.assert_close(gradient_cosines(model, *batch, ("B1", "B2")), expected)


def test_means_are_over_the_steps_that_measured():
    sums = TrainingSums(("B0", "B1"), torch.device("cpu"), ("a", "b"))
    sums.measure({"b": torch.tensor(0.5)})
    sums.measure({"a": torch.tensor(1.0), "b": torch.tensor(0.1)})
    sums.measure({"a": torch.tensor(math.nan)})
    sums.measure({})
    assert sums.read_interval().measured == pytest.approx({"a": 1.0, "b": 0.3})
    sums.measure({"a": torch.tensor(-1.0)})
    assert sums.read_interval().measured == {"a": -1.0}
    assert sums.read().measured == pytest.approx({"a": 0.0, "b": 0.3})


def test_sums_of_before_anything_was_measured_are_taken_up():
    old, new = TrainingSums(("B0", "B1"), torch.device("cpu")), TrainingSums(("B0", "B1"), torch.device("cpu"), ("a",))
    old.vectors.fill_(3)
    new.restore(old.vectors)
    assert torch.equal(new.vectors[:, :-2], old.vectors) and not new.vectors[:, -2:].any()
    with pytest.raises(ValueError, match="are needed"):
        new.restore(torch.zeros(2, 5))


FLAGS = "--dataset synthetic:64 --batch-size 16 --epochs 1 --loader torch --workers 0 --device cpu --compile off"


def train(run_dir, *flags: str) -> int:
    folders = ["--run-dir", str(run_dir), "--data-dir", str(run_dir.parent / "data")]
    return main(["train", *FLAGS.split(), *folders, *flags])


@pytest.mark.parametrize(
    "flags",
    [
        ["--arch", "wrn-10-1", "--dropout", "0.3", "--precision", "bfloat16"],
        ["--arch", "resnet8", "--accumulate", "2", "--sampler", "structural", "--precision", "float32"],
    ],
    ids=["dropout", "sampled-in-parts"],
)
def test_a_run_that_measures_learns_the_same_bit_for_bit(tmp_path, flags):
    assert train(tmp_path / "without", "--log-every", "1", *flags) == 0
    assert train(tmp_path / "with", "--log-every", "1", "--grad-cosine", "2", *flags) == 0
    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("without", "with"))
    for part in ("model", "optimizer", "rng"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)
    steps = [row for row in read_log(tmp_path / "with") if row["kind"] == "step"]
    measured = [{name for name in row if name.startswith("grad_cosine/")} for row in steps]
    assert not measured[1] and not measured[3] and measured[0] | measured[2] <= ALL
    if "structural" not in flags:
        assert measured[0] == measured[2] == ALL
        epoch = next(row for row in read_log(tmp_path / "with") if row["kind"] == "epoch")
        mean = sum(steps[i]["grad_cosine/B0-B2@layer1"] for i in (0, 2)) / 2
        assert epoch["grad_cosine/B0-B2@layer1"] == pytest.approx(mean) and -1 <= mean <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grad-cosine", "-1"], "grad_cosine is -1: must be 0 or more"),
        (["--grad-cosine", "5", "--method", "baseline"], "must be 0: without side branches there are no two"),
        (["--grad-cosine", "5", "--branches", "[]"], "must be 0: without side branches there are no two"),
    ],
    ids=["negative", "baseline", "no-branches"],
)
def test_what_cannot_be_measured_is_refused(tmp_path, capsys, flags, message):
    assert train(tmp_path / "run", "--arch", "resnet8", *flags) == 2
    assert message in capsys.readouterr().err


def test_a_run_can_begin_to_measure_when_it_is_resumed(tmp_path):
    flags = ["--arch", "resnet8", "--precision", "float32", "--log-every", "1"]
    assert train(tmp_path / "whole", *flags) == 0
    assert train(tmp_path / "cut", *flags, "--max-steps", "2") == 0
    assert main(["train", "--resume", str(tmp_path / "cut"), "--grad-cosine", "1"]) == 0
    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "cut"))
    for part in ("model", "optimizer", "rng"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)
    steps = {row["step"]: row for row in read_log(tmp_path / "cut") if row["kind"] == "step"}
    assert [steps[step].keys() >= ALL for step in (1, 2, 3, 4)] == [False, False, True, True]
