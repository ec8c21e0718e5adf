"""Drawn images: the same at every call, and their classes can be told apart."""

import numpy as np

from fastdhm.data.sources.load import load_sources


def test_synthetic_is_a_function_of_split_and_index(tmp_path):
    train, val = load_sources("synthetic:40", tmp_path)
    assert (len(train), len(val)) == (40, 10)
    pixels = train.pixels(np.arange(40))
    assert np.array_equal(pixels[7], np.asarray(train.image(7)))
    assert not np.array_equal(pixels[:10], val.pixels(np.arange(10)))
    assert len({image.tobytes() for image in pixels}) == 40


def test_synthetic_classes_can_be_learned(tmp_path):
    """The direction of the strongest wave tells the class, so a network can find it too."""
    train, _ = load_sources("synthetic:200", tmp_path)
    spectra = np.abs(np.fft.fft2(train.pixels(np.arange(200)).mean(axis=3)))[:, :, :17]
    spectra[:, 0, 0] = 0
    peak_y, peak_x = np.unravel_index(spectra.reshape(200, -1).argmax(axis=1), (32, 17))
    angle = np.degrees(np.arctan2(np.where(peak_y > 16, peak_y - 32, peak_y), peak_x)) % 180
    off = (angle - 18 * train.target_N + 90) % 180 - 90
    assert np.mean(np.abs(off) < 20) > 0.9
