"""fastdhm export: logits of the file against the network's, what it says, and what is refused."""

import json

import pytest
import torch
from PIL import Image

from fastdhm.cli import main
from fastdhm.commands import export as command
from fastdhm.config import TrainConfig
from fastdhm.engine.build import build_model, build_plain
from fastdhm.engine.saved.checkpoint import save_checkpoint, save_network

CLASSES = ("cat", 'a,"b"\n/c')


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(0)
    config = TrainConfig(arch="resnet8", precision="float32", workers=0, device="cpu")
    save_network(tmp_path / "network.safetensors", build_plain(config, len(CLASSES)), config, CLASSES)
    (tmp_path / "images").mkdir()
    for n in range(3):
        Image.new("RGB", (32, 32), (80 * n, 100, 200)).save(tmp_path / f"images/{n}.png")
    return tmp_path / "network.safetensors"


def export(path, *flags):
    return main(["export", str(path), "--images", str(path.parent / "images"), *flags])


def test_a_program_of_torch_has_the_logits_and_the_classes(network):
    assert export(network, "--format", "torch-export", "--preprocess") == 0
    extra = {"fastdhm.json": ""}
    module = torch.export.load(network.parent / "network.pt2", extra_files=extra).module()
    assert json.loads(json.loads(extra["fastdhm.json"])["classes"]) == list(CLASSES)
    assert module(torch.zeros(5, 32, 32, 3, dtype=torch.uint8)).shape == (5, 2)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch-export", "onnx"])
@pytest.mark.parametrize("branch", ["B2", "ensemble"])
def test_a_branch_and_the_ensemble_are_exported_too(network, branch, form):
    """That the file has the logits of the loaded network is checked before it is written."""
    if form == "onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    config, path = TrainConfig(arch="resnet8", precision="float32", workers=0, device="cpu"), network.parent / "last.pt"
    model = build_model(config, 2).eval()
    save_checkpoint(path, config, CLASSES, {"model": model.state_dict()})
    assert export(path, "--format", form, "--branch", branch) == 0
    if form == "onnx":
        return
    module = torch.export.load(network.parent / f"network-{branch}.pt2").module()
    image_BCHW = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        logits_MBK = model(image_BCHW)
    chances_BK = logits_MBK[2].softmax(1) if branch == "B2" else logits_MBK.softmax(2).mean(0)
    torch.testing.assert_close(module(image_BCHW).softmax(1), chances_BK)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--preprocess"]], ids=["floats", "pixels"])
def test_onnx_takes_any_batch(network, flags):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    assert export(network, *flags) == 0
    session = onnxruntime.InferenceSession(str(network.parent / "network.onnx"))
    images = torch.zeros((7, 32, 32, 3) if flags else (7, 3, 32, 32), dtype=torch.uint8 if flags else torch.float32)
    assert session.run(None, {"images": images.numpy()})[0].shape == (7, 2)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(CLASSES)


def test_a_file_that_exists_is_kept(network, capsys):
    (network.parent / "network.pt2").write_text("mine")
    assert export(network, "--format", "torch-export") == 2
    assert "is there already: choose another --out" in capsys.readouterr().err
    assert (network.parent / "network.pt2").read_text() == "mine"


def test_other_logits_write_nothing(network, capsys, monkeypatch):
    make = command._as_torch_export
    monkeypatch.setattr(command, "_as_torch_export", lambda *a: (make(*a)[0], lambda x: make(*a)[1](x) + 1))
    assert export(network, "--format", "torch-export") == 2
    assert "computes something else" in capsys.readouterr().err and not list(network.parent.glob("*.pt2"))


def test_what_is_not_installed_is_told_with_the_command(network, capsys, monkeypatch):
    monkeypatch.setattr(command, "installed", lambda name: False)
    assert export(network) == 2
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err
