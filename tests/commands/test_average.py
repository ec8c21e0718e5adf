"""fastdhm average: the mean of weights, statistics of batch norm as torch computes them, and what is refused."""

import re

import pytest
import torch
from safetensors.torch import load_file

from fastdhm.cli import main
from fastdhm.config import TrainConfig
from fastdhm.engine.build import build_plain
from fastdhm.engine.saved.checkpoint import save_network

CLASSES = tuple(f"class {number}" for number in range(10))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a network that is randomly initialised; the working directory is where it lies."""
    monkeypatch.chdir(tmp_path)

    def network(name, seed, classes=CLASSES, broken=False, **config):
        torch.manual_seed(seed)
        config = {"arch": "resnet8", "dataset": "synthetic:40", "crop": "pad", "image_size": 32} | config
        config |= {"batch_size": 8, "loader": "torch", "workers": 0, "precision": "float32", "data_dir": str(tmp_path)}
        run = TrainConfig(**config)
        plain = build_plain(run, len(classes))
        if broken:
            plain.fc.weight.data[0] = float("nan")
        save_network(tmp_path / name, plain, run, classes)

    return network


def test_weights_are_the_mean_and_batch_norm_has_statistics_of_its_own(write, capsys):
    for seed in range(3):
        write(f"{seed}.safetensors", seed, keep="best" if seed == 1 else "last")
    assert main(["average", *(f"{seed}.safetensors" for seed in range(3)), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "mean, batch norm anew" in printed and "batch norm from 40 training images" in printed
    mean, networks = load_file("average.safetensors"), [load_file(f"{seed}.safetensors") for seed in range(3)]
    assert mean.keys() == networks[0].keys()
    for name in mean:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(mean[name], sum(network[name] for network in networks) / 3)
    assert int(mean["bn1.num_batches_tracked"]) == 5 and bool(mean["bn1.running_mean"].any())
    error = re.search(r"mean, batch norm anew │ +(\S+)", printed)[1]
    assert main(["eval", "average.safetensors", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert error in printed and "an epoch of the averaged networks is chosen on these images" in printed


def test_its_norms_see_images_as_the_run_augments_them(write):
    for name, grey in (("grey", 1.0), ("plain", 0.0)):
        for seed in range(2):
            write(f"{name}{seed}.safetensors", seed, random_grey=grey, pad=0, flip=False)
        assert main(["average", f"{name}0.safetensors", f"{name}1.safetensors", "--out", f"{name}.safetensors"]) == 0
    grey, plain = (load_file(f"{name}.safetensors")["bn1.running_var"] for name in ("grey", "plain"))
    assert not torch.allclose(grey, plain, rtol=1e-3)


@pytest.mark.parametrize(
    ("given", "flags", "message"),
    [
        ({}, "", "only a.safetensors is given: name two or more"),
        ({"arch": "resnet14"}, "b.safetensors", "b.safetensors has arch resnet14, and a.safetensors has resnet8"),
        ({"classes": ("x", "y")}, "b.safetensors", "tells other classes apart"),
        ({}, "b.safetensors --out a.safetensors", "a.safetensors is there already"),
        ({}, "b.safetensors --images 0", "images is 0: must be 1 or more"),
        ({}, "c.safetensors", "c.safetensors is not there"),
        ({"broken": True}, "b.safetensors", "b.safetensors holds NaN or infinity (fc.weight): take an earlier"),
    ],
    ids=["one", "arch", "classes", "out", "images", "missing", "broken"],
)
def test_a_mean_that_cannot_be_is_refused(write, capsys, given, flags, message):
    write("a.safetensors", 0)
    write("b.safetensors", 1, **given)
    assert main(["average", "a.safetensors", *flags.split()]) == 2
    assert message in capsys.readouterr().err
