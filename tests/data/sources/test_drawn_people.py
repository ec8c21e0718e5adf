"""Drawn people: the same at every call, a sound set, and told apart by what their pictures share."""

import numpy as np
import pytest

from fastdhm.data.sources import drawn_people as reid_synthetic
from fastdhm.data.sources import people as reid
from fastdhm.data.sources.drawn_people import synthetic_reid


@pytest.fixture(scope="module")
def drawn():
    return synthetic_reid(4, 8, (64, 32))


def test_drawn_set_is_the_same_again():
    first, again, other = (synthetic_reid(1, 1, (16, 8), seed=seed) for seed in (0, 0, 1))
    assert [one.digest() for one in first] == [one.digest() for one in again]
    assert other[0].digest() != first[0].digest()


def test_no_two_things_of_a_drawn_set_share_their_random_numbers(monkeypatch):
    seen = {}

    def draws(*key):
        state = np.random.SeedSequence(key).generate_state(4).tobytes()
        assert seen.setdefault(state, key) == key
        return np.random.default_rng(key)

    monkeypatch.setattr(reid_synthetic, "_draws", draws)
    for identity in range(-1, 6):
        for camera in range(1, 5):
            for take in range(3):
                reid_synthetic.picture(identity, camera, take, size_HW=(8, 4), seed=0)
    assert len({kind for kind, *_ in seen.values()}) == 4


def test_drawn_set_is_a_sound_one(drawn):
    train, query, gallery = drawn
    reid.check_unseen(reid.ReidData(train, query, gallery))
    reid.check_rankable("drawn", (query.ids_N, query.cams_N), (gallery.ids_N, gallery.cams_N))
    assert train.image_NHWC.shape == (64, 64, 32, 3)
    assert train.target_N.tolist() == np.repeat(range(4), 16).tolist()
    assert set(query.ids_N) == set(range(5, 13))
    assert {-1, 0} < set(gallery.ids_N)
    assert len(np.unique(gallery.image_NHWC, axis=0)) == len(gallery)


def test_drawn_people_differ_in_what_their_pictures_share(drawn):
    """On one camera, where the background is the same, the colours of the middle alone find most people."""
    _, query, gallery = drawn
    colours = []
    for source in (query, gallery):
        middle_NHWC = source.image_NHWC[source.cams_N == 1, 16:56, 10:22].astype(float)
        colours.append(middle_NHWC.reshape(-1, 5, 8, 12, 3).mean((2, 3)).reshape(len(middle_NHWC), -1))
    distance = ((colours[0][:, None] - colours[1]) ** 2).sum(2)
    nearest = gallery.ids_N[gallery.cams_N == 1][distance.argmin(1)]
    assert (nearest == query.ids_N[query.cams_N == 1]).mean() >= 0.75
