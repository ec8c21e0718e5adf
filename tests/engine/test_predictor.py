"""What is loaded, and the kinds of images that it prepares."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastdhm.config import TrainConfig
from fastdhm.engine.predictor import Transform


def test_every_kind_of_an_image_is_prepared_alike(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 41, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    transform = Transform(TrainConfig(image_size=32, eval_batch_size=4, device="cpu"))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds = [Image.open(tmp_path / "a.png"), pixels, tensor, tensor / 255, str(tmp_path / "a.png")]
    expected = transform(tmp_path / "a.png")
    for image in kinds:
        assert torch.equal(transform(image), expected)


@pytest.mark.parametrize("image", [3, np.zeros((4, 4)), torch.full((3, 4, 4), -1.0), torch.zeros(5, 4, 4)])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match="give"):
        Transform(TrainConfig(image_size=32, eval_batch_size=4, device="cpu"))(image)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_images_of_other_modes(mode):
    image = Image.new(mode, (40, 36))
    ready = Transform(TrainConfig(image_size=32, eval_batch_size=4, device="cpu"))(image)
    assert ready.shape == (3, 32, 32)


def test_the_training_is_not_imported():
    program = "import sys, fastdhm; fastdhm.load; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"fastdhm.engine.train", "fastdhm.engine.report", "ffcv", "matplotlib", "tensorboard", "jsonargparse"}
    assert not heavy & set(loaded)
