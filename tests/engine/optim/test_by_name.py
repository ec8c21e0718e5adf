"""Optimizers by their names: where they come from, what they take, and that a saved one goes on bit for bit."""

import importlib.util
import inspect
import io
import sys

import pytest
import torch

from fastdhm import models
from fastdhm.cli.train import resolve_training
from fastdhm.engine.optim import by_name
from fastdhm.engine.optim.by_name import NAMES, fitted, make_optimizer
from fastdhm.engine.optim.muon import has_torchs_muon
from fastdhm.errors import UserError

LIBRARIES = {
    "muon": "torch" if has_torchs_muon() else "timm",
    "lion": "timm",
    "lamb": "timm",
    "timm": "timm",
    "schedulefree": "schedulefree",
}
SOME_OF_TIMM = ("timm:adan", "timm:lars", "timm:adafactor", "timm:nadamw")


def case(name):
    """Skipped where its library is not installed."""
    library = LIBRARIES.get(name.partition(":")[0], "torch")
    missing = importlib.util.find_spec(library) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{library} is not installed"))


def begun(name, seed=0):
    torch.manual_seed(seed)
    model = models.build("resnet8", 10).to(memory_format=torch.channels_last)
    return model, make_optimizer(model, name, lr=0.01, weight_decay=1e-3)


def train(model, optimizer, first, end):
    """Steps in which the branches sit out by turns, so that some states begin late."""
    for step in range(first, end):
        image_BCHW = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        model(image_BCHW, model.branch_names[1:] if step % 2 else ()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", [case(name) for name in (*NAMES, *SOME_OF_TIMM)])
def test_a_saved_state_goes_on_bit_for_bit(name):
    model, optimizer = begun(name)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, optimizer, 0, 2)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    train(model, optimizer, 2, 4)
    file.seek(0)
    other, its = begun(name, seed=1)
    weights, state = torch.load(file, weights_only=True)
    other.load_state_dict(weights)
    its.load_state_dict(state)
    train(other, its, 2, 4)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    if name != "schedulefree:radam":  # its first steps are none
        moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert all(moved)


WRONG = {
    ("adamv", ""): "unknown optimizer 'adamv'; did you mean 'adamw'?",
    ("schedulefree:lion", ""): "unknown optimizer 'schedulefree:lion'",
    ("timm:adann", ""): "timm has no optimizer 'adann' for a run; did you mean 'adan'?",
    ("timm:adahessian", ""): "it needs second derivatives",
    ("adamw", "ep=1"): "optimizer_args names ep; did you mean 'eps'? (adamw has eps)",
    ("adamw", "betas=0.5,0.9"): "optimizer_args names betas: set it by --betas",
    ("lamb", "weight_decay=0.1"): "set it by --weight-decay",
    ("lion", "betas=3,2"): "optimizer_args is betas=3,2: lion does not take it: Invalid beta parameter at index 0: 3",
    ("adamw", "eps=small"): "adamw does not take it",
    ("adamw", "eps=nan"): "optimizer_args has eps=nan: must be finite",
    ("adamw", "eps=1e999"): "optimizer_args has eps=1e999: must be finite",
}  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), WRONG, ids=["-".join(filter(None, wrong)) for wrong in WRONG])
def test_what_is_wrong_is_named(name, arguments):
    if importlib.util.find_spec(LIBRARIES.get(name.partition(":")[0], "torch")) is None:
        pytest.skip("its library is not installed")
    with pytest.raises(UserError) as told:
        make_optimizer(torch.nn.Linear(2, 2), name, lr=0.1, weight_decay=0.0, arguments=arguments)
    assert WRONG[name, arguments] in str(told.value)


@pytest.mark.parametrize("name", ["lion", "timm:adan", "schedulefree:adamw"])
def test_a_library_that_is_not_there_has_its_command(name, monkeypatch):
    library = LIBRARIES[name.partition(":")[0]]
    for module in [library, *(module for module in sys.modules if module.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"pip install {library}"):
        make_optimizer(torch.nn.Linear(2, 2), name, lr=0.1, weight_decay=0.0)


def test_arguments_are_python_values():
    read = {"eps": 1e-6}
    assert by_name.read_arguments("adamw", "eps=1e-6") == read
    if not has_torchs_muon():
        pytest.importorskip("timm")
    text = "momentum=0.9, ns_coefficients=3.4,-4.7,2.0,nesterov=false,adjust_lr_fn=original"
    assert by_name.read_arguments("muon", text) == {
        "momentum": 0.9, "ns_coefficients": (3.4, -4.7, 2.0), "nesterov": False, "adjust_lr_fn": "original",
    }  # fmt: skip


def test_another_optimizer_than_the_recipes_brings_its_own_rate():
    recipe = {"lr": 0.1, "warmup_lr": 0.01, "weight_decay": 1e-4, "nesterov": True}
    assert fitted(recipe, "sgd") == {}
    found = fitted(recipe, "adamw")
    assert found == {
        "lr": 1e-3, "weight_decay": 1e-2, "warmup_lr": pytest.approx(1e-4), "nesterov": False, "optimizer": "adamw",
    }  # fmt: skip
    config, _ = resolve_training(["--dataset", "synthetic", "--optimizer", "adamw", "--weight-decay", "0.3"])
    assert (config.optimizer, config.lr, config.weight_decay, config.nesterov) == ("adamw", 1e-3, 0.3, False)
    people, _ = resolve_training(["--dataset", "reid-synthetic", "--optimizer", "amsgrad"])
    assert people.lr == 3e-3


def test_an_optimizer_without_a_rate_of_its_own_asks_for_one(monkeypatch):
    """As timm's adafactor, whose rate is None, and its sgdp, where it is required."""
    recipe = {"lr": 0.1, "warmup_lr": 0.01, "weight_decay": 1e-4}
    for default in (None, inspect.Parameter.empty, object()):
        own = inspect.Signature([inspect.Parameter("lr", inspect.Parameter.KEYWORD_ONLY, default=default)])
        kind = type("Own", (), {"__signature__": own})
        monkeypatch.setattr(by_name, "find", lambda name, kind=kind: (kind, {}))
        with pytest.raises(UserError, match="set one by --lr"):
            fitted(recipe, "timm:own")
        assert fitted(recipe, "timm:own", 0.02)["lr"] == 0.02


@pytest.mark.parametrize("name", [case("schedulefree:sgd")])
def test_a_schedule_free_run_has_no_schedule(name):
    config, _ = resolve_training(["--dataset", "synthetic", "--optimizer", name])
    assert (config.schedule, config.lr) == ("constant", 1.0)
