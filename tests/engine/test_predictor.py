"""What is loaded, and the kinds of images that it prepares."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastdhm import models
from fastdhm.config import TrainConfig
from fastdhm.engine.predictor import Transform, likeliest, load
from fastdhm.engine.saved.checkpoint import save_network


def test_every_kind_of_an_image_is_prepared_alike(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 41, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    transform = Transform(TrainConfig(image_size=32, eval_batch_size=4, device="cpu"))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds = [Image.open(tmp_path / "a.png"), pixels, tensor, tensor / 255, str(tmp_path / "a.png")]
    expected = transform(tmp_path / "a.png")
    for image in kinds:
        assert torch.equal(transform(image), expected)


@pytest.mark.parametrize("levels", [2, 9, 10**6])  # many equal logits, some, none
@pytest.mark.parametrize("top", [1, 5, 40, 50])
def test_of_equal_logits_the_first_class_is_the_likeliest(levels, top):
    logits_BK = torch.randint(levels, (30, 40), generator=torch.Generator().manual_seed(0)).float()
    logits_BK[3, 7], logits_BK[4] = -torch.inf, torch.nan
    expected_BT = logits_BK.sort(dim=1, descending=True, stable=True).indices[:, :top]
    assert torch.equal(likeliest(logits_BK, top), expected_BT)
    rows = [5, 6, 7]  # without NaN
    assert torch.equal(likeliest(logits_BK[rows], top), expected_BT[rows])


@pytest.mark.parametrize("image", [3, np.zeros((4, 4)), torch.full((3, 4, 4), -1.0), torch.zeros(5, 4, 4)])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match="give"):
        Transform(TrainConfig(image_size=32, eval_batch_size=4, device="cpu"))(image)


@pytest.mark.parametrize("image", [None, b"PNG"])
def test_one_thing_that_is_no_image_is_refused_by_its_type(tmp_path, image):
    path = tmp_path / "network.safetensors"
    config = TrainConfig(arch="resnet8", image_size=32, eval_batch_size=4, precision="float32")
    save_network(path, models.build("resnet8", 2, ()).strip(), config, ("a", "b"))
    with pytest.raises(ValueError, match=f"{type(image).__name__} is no image: give"):
        load(path, device="cpu").predict(image)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_images_of_other_modes(mode):
    image = Image.new(mode, (40, 36))
    ready = Transform(TrainConfig(image_size=32, eval_batch_size=4, device="cpu"))(image)
    assert ready.shape == (3, 32, 32)


def test_three_lines_import_no_part_of_the_training(tmp_path):
    """Nor what draws, logs and prints: a server that answers loads only what it needs."""
    path = tmp_path / "network.safetensors"
    config = TrainConfig(arch="resnet8", image_size=32, eval_batch_size=4, precision="float32")
    save_network(path, models.build("resnet8", 2, ()).strip(), config, ("a/b", "c"))
    program = """if True:
        import sys, fastdhm, numpy
        predictor = fastdhm.load(sys.argv[1], device="cpu")
        found, = predictor.predict(numpy.zeros((40, 32, 3), numpy.uint8))
        assert sorted(found.classes) == ["a/b", "c"] and abs(sum(found.probabilities) - 1) < 1e-6
        print(*sys.modules)"""
    told = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    parts = "train", "step", "run", "plan", "settle", "display", "report", "optim", "compiling", "fast.fuse"
    heavy = "rich", "tensorboard", "torch.utils.tensorboard", "matplotlib", "jsonargparse", "ffcv", "numba"
    unwanted = {*heavy, *(f"fastdhm.engine.{part}" for part in parts), "fastdhm.ops.mimic_loss", "fastdhm.compare"}
    assert not unwanted & set(told.stdout.split())
