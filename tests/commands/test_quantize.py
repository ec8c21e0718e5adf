"""fastdhm export --int8: weights are int8, the error is said, and what cannot be is refused."""

import re

import pytest
import torch

from fastdhm.cli import main
from fastdhm.commands import quantize as command
from fastdhm.config import TrainConfig
from fastdhm.engine.build import build_plain, load_trained
from fastdhm.engine.saved.checkpoint import save_network
from fastdhm.errors import UserError
from fastdhm.system.console import Console


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(0)
    config = TrainConfig(
        arch="resnet8", dataset="synthetic:40", data_dir=str(tmp_path), batch_size=8, crop="pad", loader="torch",
        precision="float32", workers=0, device="cpu",
    )  # fmt: skip
    classes = tuple(f"class {number}" for number in range(10))
    save_network(tmp_path / "network.safetensors", build_plain(config, 10), config, classes)
    return tmp_path / "network.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--preprocess"]], ids=["floats", "pixels"])
def test_a_network_in_int8_says_its_error_beside_that_of_float32(network, capsys, flags):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    assert main(["export", str(network), "--int8", *flags]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"error on \d+ validation images: [\d.]+% in float32, [\d.]+% in int8", printed), printed
    assert "before int8, logits differ" in printed, printed
    model = onnx.load(network.parent / "network.int8.onnx")
    assert any(
        tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4 for tensor in model.graph.initializer
    )
    assert {entry.key for entry in model.metadata_props} >= {"classes", "mean", "std"}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    images = torch.zeros((3, 32, 32, 3) if flags else (3, 3, 32, 32), dtype=torch.uint8 if flags else torch.float32)
    assert session.run(None, {"images": images.numpy()})[0].shape == (3, 10)


def test_what_the_quantizer_raises_is_told_in_a_line(network, monkeypatch):
    class Fail(Exception):
        """onnxruntime's own errors are of no other class."""

    def fail(*_):
        raise Fail("[ONNXRuntimeError]\n  no such node")

    monkeypatch.setattr(command, "_quantize", fail)
    with pytest.raises(UserError, match=r"cannot quantize this network: \[ONNXRuntimeError\] no such node"):
        command.quantized(b"", load_trained(network).config, lambda image_BHWC: image_BHWC, Console())


def test_int8_is_of_onnx(network, capsys):
    assert main(["export", str(network), "--int8", "--format", "torch-export"]) == 2
    assert "--int8 is for --format onnx, not torch-export" in capsys.readouterr().err
