"""The moving average of the weights: its rule, and what becomes of it in a run."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from fastdhm import models
from fastdhm.cli import main
from fastdhm.engine.optim.average import WeightAverage
from fastdhm.engine.saved.checkpoint import load_checkpoint
from fastdhm.engine.saved.record import read_log
from runs import assert_same_state, command, rows_without_times


def test_the_rule():
    """Against the sum written out, for weights and running statistics; counters are copied."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    average, decay = WeightAverage(model, 0.6), 0.6
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(8):
        for parameter in model.parameters():
            parameter.data.normal_()
        model(torch.randn(5, 3, dtype=torch.float64))
        average.update(step)
        d = min(decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            is_float = tensor.is_floating_point()
            expected[name] = d * expected[name] + (1 - d) * tensor if is_float else tensor.clone()
    torch.testing.assert_close(dict(average.model.state_dict()), expected)
    assert not average.model.training and not any(p.requires_grad for p in average.model.parameters())


def test_an_average_can_be_stripped_and_begun_anew():
    model = models.build("resnet8", 10)
    models.checkpoint_activations(model)
    average = WeightAverage(model, 0.9)
    nn.init.ones_(model.trunk.fc.bias)
    average.restart()
    image_BCHW = torch.randn(2, 3, 16, 16)
    assert torch.equal(average.model.strip()(image_BCHW), model.eval()(image_BCHW)[0])


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("averaged") / "run"
    assert main(command(run_dir, "--epochs", "1", "--log-every", "1", "--ema", "0.7")) == 0
    return run_dir


def test_the_average_is_validated_and_stripped_and_the_run_says_so(averaged, tmp_path, capsys):
    assert main(command(tmp_path / "plain", "--epochs", "1", "--log-every", "1")) == 0
    assert "moving average" not in capsys.readouterr().out
    saved, plain = (load_checkpoint(path / "last.pt") for path in (averaged, tmp_path / "plain"))
    torch.testing.assert_close(saved["model"], plain["model"], rtol=0, atol=0)  # it takes no part in learning
    network = load_file(averaged / "network.safetensors")
    assert all(torch.equal(tensor, saved["average"][f"trunk.{name}"]) for name, tensor in network.items())
    assert not torch.equal(saved["average"]["trunk.fc.weight"], saved["model"]["trunk.fc.weight"])
    with safe_open(averaged / "network.safetensors", "pt") as file:
        assert json.loads(file.metadata()["ema"]) == 0.7
    assert main(["eval", str(averaged), "--json", "--workers", "0"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["network"] == results["B0"]
    assert results["B0"]["top1_error"] == read_log(averaged)[-1]["val_error/B0"]
    assert main(["train", "--resume", str(averaged)]) == 0
    assert "moving average of the weights" in capsys.readouterr().out


def test_an_averaged_run_resumes_bit_for_bit(averaged, tmp_path):
    run_dir = tmp_path / "run"
    assert main(command(run_dir, "--epochs", "1", "--log-every", "1", "--ema", "0.7", "--max-steps", "4")) == 0
    assert main(["train", "--resume", str(run_dir)]) == 0
    assert_same_state(run_dir / "last.pt", averaged / "last.pt", same_best=False)
    both = [load_checkpoint(path / "last.pt")["average"] for path in (run_dir, averaged)]
    torch.testing.assert_close(*both, rtol=0, atol=0)
    assert rows_without_times(run_dir) == rows_without_times(averaged)


@pytest.mark.parametrize("decay", ["1.0", "-0.1"])
def test_a_decay_out_of_range_is_refused(tmp_path, capsys, decay):
    assert main(command(tmp_path / "run", "--ema", decay)) == 2
    assert f"ema is {decay}: must be in [0, 1)" in capsys.readouterr().err
