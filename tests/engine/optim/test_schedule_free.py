"""Schedule-free optimizers in a run: which weights are trained, judged and kept, and their batch norms."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from fastdhm import models
from fastdhm.cli import main
from fastdhm.engine.optim.by_name import make_optimizer
from fastdhm.engine.optim.schedule_free import ScheduleFreeAverage
from fastdhm.engine.saved.checkpoint import load_checkpoint
from runs import assert_same_state, command, rows_without_times

pytest.importorskip("schedulefree", reason="schedulefree is not installed")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_average_is_the_librarys_and_taking_it_changes_no_bit(name):
    torch.manual_seed(0)
    model = models.build("resnet8", 10)
    optimizer = make_optimizer(model, f"schedulefree:{name}", lr=0.01, weight_decay=0.1)
    average = ScheduleFreeAverage(model, optimizer)
    for _ in range(3):
        model(torch.randn(4, 3, 16, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    before = copy.deepcopy(model.state_dict())
    average.take(3)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(group["train_mode"] for group in optimizer.param_groups)
    optimizer.eval()
    theirs = model.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in average.model.state_dict().items())
    assert not torch.equal(before["trunk.fc.weight"], theirs["trunk.fc.weight"])


def test_its_norms_are_means_over_the_batches():
    torch.manual_seed(0)
    model = models.build("resnet8", 10)
    average = ScheduleFreeAverage(model, make_optimizer(model, "schedulefree:sgd", lr=0.1, weight_decay=0.0))
    images = [torch.randn(8, 3, 16, 16) for _ in range(3)]
    average.measure_norms(images)
    norm = average.model.trunk.bn1
    seen = torch.stack([average.model.trunk.conv1(image).mean((0, 2, 3)) for image in images]).mean(0)
    torch.testing.assert_close(norm.running_mean, seen.detach(), rtol=1e-4, atol=1e-6)
    assert not average.model.training and not norm.training and norm.momentum == model.trunk.bn1.momentum
    assert model.trunk.bn1.num_batches_tracked == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("free") / "run"
    assert main(command(run_dir, "--epochs", "1", "--log-every", "1", "--optimizer", "schedulefree:adamw")) == 0
    return run_dir


def test_what_is_kept_is_the_average(whole):
    saved, network = load_checkpoint(whole / "last.pt"), load_file(whole / "network.safetensors")
    assert all(torch.equal(tensor, saved["average"][f"trunk.{name}"]) for name, tensor in network.items())
    for part in ("fc.weight", "bn1.running_mean"):
        assert not torch.equal(saved["average"][f"trunk.{part}"], saved["model"][f"trunk.{part}"])


def test_it_resumes_bit_for_bit(whole, tmp_path):
    run_dir = tmp_path / "run"
    flags = ("--epochs", "1", "--log-every", "1", "--optimizer", "schedulefree:adamw", "--max-steps", "4")
    assert main(command(run_dir, *flags)) == 0
    assert main(["train", "--resume", str(run_dir)]) == 0
    assert_same_state(run_dir / "last.pt", whole / "last.pt", same_best=False)
    both = [load_checkpoint(path / "last.pt")["average"] for path in (run_dir, whole)]
    torch.testing.assert_close(*both, rtol=0, atol=0)
    assert rows_without_times(run_dir) == rows_without_times(whole)
