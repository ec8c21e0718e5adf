"""Data sets by name, and what every source can do."""

import pickle

import numpy as np
import pytest

from fastdhm.data.sources.load import load_sources
from fastdhm.errors import UserError


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fashionmnist", "did you mean 'fashion-mnist'"),
        ("cifar-10", "did you mean 'cifar10'"),
        ("folder", "folder:PATH"),
        ("nonsense-without-neighbour", "known: fashion-mnist"),
        ("synthetic:0", "synthetic:N"),
        ("synthetic:x", "synthetic:N"),
        ("synthetic:100:101", "synthetic:N:K"),
        ("synthetic:100:1", "synthetic:N:K"),
        ("synthetic:100:10:1", "synthetic:N:K"),
        ("synthetic:100:", "synthetic:N:K"),
    ],
)
def test_unknown_data_set(tmp_path, name, hint):
    with pytest.raises(UserError, match=hint):
        load_sources(name, tmp_path)


def test_imagenet_is_looked_for_in_both_places(photo_root, tmp_path):
    assert len(load_sources("imagenet", photo_root)[0]) == 24
    (tmp_path / "imagenet").symlink_to(photo_root)
    assert len(load_sources("imagenet", tmp_path)[0]) == 24


def test_sources_can_be_pickled(photo_root, tmp_path):
    for dataset in (f"folder:{photo_root}", "synthetic:8"):
        train, _ = load_sources(dataset, tmp_path)
        again = pickle.loads(pickle.dumps(train))
        assert np.array_equal(np.asarray(again.image(3)), np.asarray(train.image(3)))
