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


def test_synthetic_identities_are_told_apart_in_any_picture_of_them(tmp_path):
    """Of very many classes, what pictures share is their class: its colours, wherever noise and shift put them."""
    train, val = load_sources("synthetic:300:100", tmp_path)
    assert len(train.classes) == 100 and (train.target_N == np.arange(300) % 100).all() and len(val) == 75
    assert train.digest() != load_sources("synthetic:300", tmp_path)[0].digest()
    assert train.digest() != load_sources("synthetic:300:99", tmp_path)[0].digest()
    one, other = (source.pixels(np.arange(75)).astype(float).reshape(75, 32, 32, 3) - 128 for source in (train, val))
    assert not np.array_equal(one, other)
    shifts = [(dy, dx) for dy in range(-6, 7) for dx in range(-6, 7)]
    likeness = np.max([np.tensordot(np.roll(one, s, (1, 2)), other, ((1, 2, 3), (1, 2, 3))) for s in shifts], axis=0)
    assert (likeness.argmax(1) == np.arange(75)).mean() > 0.9
