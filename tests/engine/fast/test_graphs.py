"""The step as a CUDA graph. Without a GPU: which forms are captured, and what a replay is fed."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torchvision

from fastdhm.cli import main
from fastdhm.engine.fast.graphs import WARM_UP, GraphedStep, Graphs, check_recomputed
from fastdhm.engine.optim.by_name import make_optimizer
from fastdhm.engine.optim.optimizer import set_learning_rate
from fastdhm.engine.saved.record import read_log
from fastdhm.errors import UserError


def test_each_form_is_captured_once_and_replayed_on_what_is_given():
    """A captured function runs again on the very tensors that it was captured with, as a graph does."""
    captured, form = [], ["eager"]

    class Graphs:
        def warm_up(self, function):
            return function()

        def capture(self, function):
            captured.append(function)
            return function

    class Labels(NamedTuple):
        target: torch.Tensor
        share: torch.Tensor | None = None

    def step(image, labels, weights, active):
        assert labels.share is None
        return image.sum() + labels.target.sum(), weights * 2, torch.tensor(len(active))

    graphed = GraphedStep(step, lambda: form[0], Graphs())
    number = 0
    for _ in range(2 * WARM_UP):
        for shape, active in [((2, 3), ("B1", "B2")), ((2, 3), ("B1",)), ((4, 3), ("B1",))]:
            number += 1
            image, weights = torch.full(shape, float(number)), torch.ones(2) * number
            labels = Labels(torch.arange(2) * number)
            results = graphed(image, labels, weights, active)
            for result, expected in zip(results, step(image, labels, weights, active), strict=True):
                assert torch.equal(result, expected)
    assert len(captured) == 3
    form[0] = "compiled"
    for _ in range(WARM_UP + 1):
        graphed(image, labels, weights, active)
    assert len(captured) == 4


def test_a_capture_leaves_other_threads_alone(monkeypatch):
    """A loader's thread pins memory whenever it likes, which breaks a capture in torch's default mode."""
    settings = {}

    def capturing(graph, **given):
        settings.update(given)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "a stream")
    assert Graphs().capture(lambda: "results")() == "results"
    assert settings == {"pool": (0, 1), "stream": "a stream", "capture_error_mode": "thread_local"}


@pytest.mark.parametrize(
    ("layer", "draws"),
    [
        (torch.nn.Dropout(0.1), True),
        (torch.nn.Dropout(0.0), False),
        (torchvision.ops.StochasticDepth(0.1, "row"), True),
        (torch.nn.TransformerEncoderLayer(8, 2, dropout=0.1), True),
        (torch.nn.BatchNorm2d(3), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_graph_recomputes_no_random_numbers(layer, draws):
    """Captured, the second computation would draw other ones, in silence."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), layer)
    with pytest.raises(UserError, match="cuda_graphs and activation_checkpointing") if draws else nullcontext():
        check_recomputed(model)


@pytest.mark.parametrize("kind", ["sgd", "amsgrad", "adamw"])
def test_a_learning_rate_in_a_tensor_steps_as_a_number_does(kind):
    """The tensor stays the same one, which a captured graph reads."""
    ends = []
    for as_tensor in (False, True):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        optimizer = make_optimizer(layer, kind, lr=0.1, weight_decay=1e-4, nesterov=kind == "sgd")
        if as_tensor:
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(0.1)
            place = optimizer.param_groups[0]["lr"].data_ptr()
        for lr in (0.1, 0.05, 0.01):
            set_learning_rate(optimizer, lr)
            layer(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(layer.weight.detach())
    assert optimizer.param_groups[0]["lr"].data_ptr() == place
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-7)


def test_graphs_need_a_gpu(tmp_path, capsys):
    flags = ["--dataset", "synthetic:64", "--device", "cpu", "--run-dir", str(tmp_path / "run")]
    assert main(["train", *flags, "--cuda-graphs", "true"]) == 2
    assert "cuda_graphs is true: the device is cpu" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "recipe",
    [
        "--schedule cosine --mimic-warmup 1 --clip-grad 1 --accumulate 2 --progressive 0.5",
        "--sampler structural",
        "--sampler bernoulli --sample-every step --optimizer amsgrad --nesterov false",
    ],
    ids=["plain", "structural", "amsgrad"],
)
def test_a_captured_run_learns_what_an_uncaptured_one_does(tmp_path, recipe, precision):
    """The learning rate is a float32 number on one side and a double on the other: narrow types drift apart by that."""
    losses = []
    for graphs in ("false", "true"):
        folders = ["--run-dir", str(tmp_path / graphs), "--data-dir", str(tmp_path / "data")]
        flags = ["--dataset", "synthetic:640", "--arch", "resnet8", "--batch-size", "16", "--epochs", "2"]
        options = ["--device", "cuda", "--compile", "off", "--log-every", "1", "--precision", precision]
        assert main(["train", *folders, *flags, *options, "--cuda-graphs", graphs, *recipe.split()]) == 0
        losses.append([row["loss"] for row in read_log(tmp_path / graphs) if row["kind"] == "step"])
    begun = None if precision == "float32" else 20
    assert losses[0][:begun] == pytest.approx(losses[1][:begun], rel=1e-2)
    assert sum(losses[0]) == pytest.approx(sum(losses[1]), rel=2e-2)
