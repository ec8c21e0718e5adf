"""All that is done to an image, as one value."""

import numpy as np

from fastdhm.data.augment.augmentation import Augmentation
from fastdhm.data.augment.policy import Policy


def test_nothing_is_nothing():
    assert not Augmentation()
    assert Augmentation(erase=0.1) and Augmentation(jitter=(0, 0, 0, 0.1)) and Augmentation(policy=Policy(1, None))


def test_what_is_done_is_said_in_words():
    augmentation = Augmentation(policy=Policy(1, None), grey=0.5, erase=0.5)
    said = augmentation.describe(np.arange(200), 0, (32, 32))
    assert "" in said and "grey" in said and any(words.startswith("rotate") and "°" in words for words in said)
    boxes = augmentation.boxes(np.arange(200), 0, (32, 32))
    assert {row for row, words in enumerate(said) if words.endswith("erase")} == boxes.keys()
