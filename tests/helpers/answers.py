"""Answers of a network that is not there, over images that are drawn, for what is made of them."""

import numpy as np
from PIL import Image

from fastdhm.per_class.measures import Answers

ODD_NAMES = ("a/b", 'say "no", please', "two\nlines\r\nand more", "=1+2", " spaces ", "<img src=x>", "$x_1$ 猫")


def drawn_answers(num_classes, images, seed=0, empty=()):
    """Right for about two images of three; the classes ``empty`` have none."""
    rng = np.random.default_rng(seed)
    with_images = np.setdiff1d(np.arange(num_classes), empty)
    target_N = rng.choice(with_images, images)
    said_N = np.where(rng.random(images) < 2 / 3, target_N, (target_N + rng.integers(1, 4, images)) % num_classes)
    confidence_N = rng.uniform(1 / num_classes, 1, images)
    true_N = np.where(said_N == target_N, confidence_N, (1 - confidence_N) / 2)
    return Answers(np.arange(images), target_N, said_N, confidence_N, true_N)


def drawn_image(index):
    """Another one for each index."""
    return Image.new("RGB", (40, 20), (index % 256, 80, 160))
