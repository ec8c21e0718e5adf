"""From a file of the released code to a run directory: the same outputs, judged, embedded, trained on."""

import json
import re

import pytest
import torch
from PIL import Image
from released import trained
from safetensors.torch import load_file

from fastdhm import models
from fastdhm.cli import main
from fastdhm.engine.build import load_trained
from fastdhm.engine.saved.checkpoint import read_config


def official(path, arch, num_classes):
    """The released code's network, and the file that its script saves of it."""
    network = trained(arch, num_classes)
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 164, "arch": "resnet", "state_dict": state, "best_prec1": 72.6, "optimizer": {}}, path)
    return network


@pytest.mark.parametrize("arch", ["resnet8", "wrn-10-1", "densenet-10-4", "densenet-bc-16-4"])
def test_the_same_images_give_the_same_three_outputs_through_the_command(arch, tmp_path, capsys):
    network, out = official(tmp_path / "model_best.pth.tar", arch, 100), tmp_path / "run"
    assert main(["import-official", str(tmp_path / "model_best.pth.tar"), "--arch", arch, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "layer3_head1" in told and "fc_head2" in told and "numbered 0 to 99" in told
    trained = load_trained(out)
    (branched, plain), config, classes = trained.networks, trained.config, trained.classes
    assert (config.dataset, config.method, config.branches, config.image_size) == ("cifar100", "dhm", ("B1", "B2"), 32)
    assert config.mean == (0.4914, 0.4822, 0.4465), "the released script normalises CIFAR-100 as CIFAR-10"
    assert (len(classes), classes[99]) == (100, "class 99")
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.stack(network(x))
        torch.testing.assert_close(branched.eval()(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(plain.eval()(x), expected[0], rtol=1e-4, atol=1e-4)
    assert load_file(out / "network.safetensors").keys() == branched.strip().state_dict().keys()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven classes of a few coloured squares."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for split in ("train", "val"):
        for k in range(7):
            (root / split / f"kind-{k}").mkdir(parents=True)
            for i in range(5 if split == "train" else 2):
                Image.new("RGB", (40, 36), (30 * k, 90 * i, 200)).save(root / split / f"kind-{k}" / f"{i}.png")
    return root


def imported(tmp_path, photos, num_classes=7):
    network = official(tmp_path / "model.pth", "resnet8", num_classes)
    flags = ["--dataset", f"folder:{photos}", "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    assert main(["import-official", str(tmp_path / "model.pth"), "--arch", "resnet8", *flags]) == 0
    return network, tmp_path / "run"


def test_what_was_imported_is_judged_and_embedded(tmp_path, photos, capsys):
    _, run = imported(tmp_path, photos)
    capsys.readouterr()
    flags = ["--device", "cpu", "--loader", "torch", "--workers", "0"]
    assert main(["eval", str(run), "--json", *flags]) == 0
    errors = json.loads(capsys.readouterr().out)
    assert set(errors) == {"B0", "B1", "B2", "network"}
    assert errors["B0"] == errors["network"]
    out = tmp_path / "features.safetensors"
    argv = ["embed", str(run), str(photos / "val"), "--out", str(out), "--workers", "0", "--device", "cpu"]
    assert main(argv) == 0
    assert next(iter(load_file(out).values())).shape == (14, 64)


def test_a_run_can_begin_from_it_but_not_go_on_with_it(tmp_path, photos, capsys):
    _, run = imported(tmp_path, photos)
    assert main(["train", "--resume", str(run), "--loader", "torch", "--device", "cpu"]) == 2
    assert "holds a network alone, and no run can go on with that" in capsys.readouterr().err
    flags = f"--dataset folder:{photos} --arch resnet8 --device cpu --loader torch --workers 0 --max-steps 1"
    folders = ["--data-dir", str(tmp_path / "data"), "--run-dir", str(tmp_path / "next")]
    argv = ["train", *flags.split(), *folders, "--weights", str(run / "network.safetensors")]
    assert main([*argv, "--batch-size", "4", "--lr", "1e-30"]) == 0
    begun, origin = (load_file(folder / "network.safetensors") for folder in (tmp_path / "next", run))
    torch.testing.assert_close(begun["layer3.0.conv1.weight"], origin["layer3.0.conv1.weight"])


def test_a_data_set_of_other_classes_is_refused_when_judged(tmp_path, photos, capsys):
    _, run = imported(tmp_path, photos, num_classes=5)
    assert main(["eval", str(run), "--device", "cpu", "--loader", "torch", "--workers", "0"]) == 2
    assert "was trained on other classes than folder:" in capsys.readouterr().err


def test_without_heads_it_is_a_baseline(tmp_path):
    torch.save(models.build("resnet8", 100, ()).trunk.state_dict(), tmp_path / "plain.pth")
    out = tmp_path / "run"
    assert main(["import-official", str(tmp_path / "plain.pth"), "--arch", "resnet8", "--out", str(out)]) == 0
    assert (read_config(out).method, read_config(out).branches) == ("baseline", None)
    assert load_trained(out).networks[0].branch_names == ("B0",)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--arch resnet14", r"another network than resnet14: tensors \d+ missing \(layer1.1.conv1.*, \.\.\.\)"),
        ("--arch wrn-10-1", r"\d+ missing .*; \d+ unknown"),
        ("--arch resnet50", "another network than resnet50"),
        ("--arch resnet9", r"resnet9 has 9 layers: must be 6n\+2"),
        ("--arch mobilenet", "released code has no network 'mobilenet'"),
        ("--arch resnet8 --dataset cifar10", "tells 100 classes apart, and cifar10 has 10.*--dataset"),
        ("--arch resnet8 --dataset cifar101", "unknown data set 'cifar101'; did you mean 'cifar10"),
        ("--arch resnet8 --out .", "is there and not empty"),
        ("", "error: give --arch;"),
    ],
)  # fmt: skip
def test_refused_in_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    official(tmp_path / "model.pth", "resnet8", 100)
    assert main(["import-official", "model.pth", *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    assert len(error) < 600
    assert re.search(message, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]
