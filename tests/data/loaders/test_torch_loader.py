"""torch's loader: what a read that fails or does not return says."""

import os

import numpy as np
import pytest
from batches import OPTIONS, read
from PIL import Image

from fastdhm.data.loaders.build import build_loader
from fastdhm.data.loaders.loader import LoaderOptions
from fastdhm.data.sources.folder import FolderSource
from fastdhm.data.sources.load import load_sources
from fastdhm.errors import UserError
from fastdhm.system.waiting import WaitedInVain


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_read_that_does_not_return_names_the_file(photo_root, tmp_path, monkeypatch, workers):
    """As on a network drive that has gone."""
    source, _ = load_sources(f"folder:{photo_root}", photo_root)
    image, pipe = type(source).image, tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(type(source), "image", lambda self, i, *more: pipe.read_bytes() if i == 5 else image(self, i))
    monkeypatch.setenv("FASTDHM_WAIT_SECONDS", "2")
    loader = build_loader("torch", LoaderOptions(batch_size=4, image_size=32, workers=workers), source=source)
    with pytest.raises(WaitedInVain, match=rf"data did not come in [0-9]+ s: .* is reading {source.label(5)}"):
        read(loader, 0)
    os.close(os.open(pipe, os.O_RDWR))  # ends the read


@pytest.mark.parametrize("crop", ["scale", "center", "whole"])
def test_large_photographs_are_decoded_smaller_and_look_the_same(tmp_path, crop):
    rng, sizes = np.random.default_rng(0), []
    (tmp_path / "train/a").mkdir(parents=True)
    for n in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        coarse.resize((1000, 700), Image.Resampling.BICUBIC).save(tmp_path / f"train/a/{n}.jpg", quality=95)
    source = FolderSource(tmp_path / "train", f"folder:{tmp_path}", "train")
    options = LoaderOptions(batch_size=4, image_size=64, crop=crop, shuffle=False, workers=0)

    class Whole(type(source)):
        def image(self, i, shrink=None):
            return super().image(i)

    class Watched(type(source)):
        def image(self, i, shrink=None):
            image = super().image(i, shrink)
            sizes.append(image.size)
            return image

    answers = [
        read(build_loader("torch", options, source=kind(source.root, source.name, "train")), 0)
        for kind in (Whole, Watched)
    ]
    (whole,), (smaller,) = ([batch.image_BHWC.int() for batch in batches] for batches in answers)
    assert min(sizes) < (1000, 700)
    assert (whole - smaller).abs().float().mean() < 1.5 and (whole - smaller).abs().max() < 30


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_worker_error_names_the_file_and_no_traceback(bad_root, workers):
    source, _ = load_sources(f"folder:{bad_root}", bad_root)
    options = {**OPTIONS, "batch_size": 4, "crop": "center", "workers": workers, "shuffle": False, "drop_last": False}
    loader = build_loader("torch", LoaderOptions(**options), source=source)
    with pytest.raises(UserError, match=r"cut\.jpg: cannot be decoded.*--skip-bad") as caught:
        read(loader, 0)
    assert "Traceback" not in str(caught.value)
