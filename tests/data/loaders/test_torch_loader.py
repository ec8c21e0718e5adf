"""torch's loader: what a read that fails or does not return says."""

import os

import pytest
from batches import OPTIONS, read

from fastdhm.data.loaders.build import build_loader
from fastdhm.data.loaders.loader import LoaderOptions
from fastdhm.data.sources.load import load_sources
from fastdhm.errors import UserError
from fastdhm.system.waiting import WaitedInVain


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_read_that_does_not_return_names_the_file(photo_root, tmp_path, monkeypatch, workers):
    """As on a network drive that has gone."""
    source, _ = load_sources(f"folder:{photo_root}", photo_root)
    image, pipe = type(source).image, tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(type(source), "image", lambda self, i: pipe.read_bytes() if i == 5 else image(self, i))
    monkeypatch.setenv("FASTDHM_WAIT_SECONDS", "2")
    loader = build_loader("torch", LoaderOptions(batch_size=4, image_size=32, workers=workers), source=source)
    with pytest.raises(WaitedInVain, match=rf"data did not come in [0-9]+ s: .* is reading {source.label(5)}"):
        read(loader, 0)
    os.close(os.open(pipe, os.O_RDWR))  # ends the read


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_worker_error_names_the_file_and_no_traceback(bad_root, workers):
    source, _ = load_sources(f"folder:{bad_root}", bad_root)
    options = {**OPTIONS, "batch_size": 4, "crop": "center", "workers": workers, "shuffle": False, "drop_last": False}
    loader = build_loader("torch", LoaderOptions(**options), source=source)
    with pytest.raises(UserError, match=r"cut\.jpg: cannot be decoded.*--skip-bad") as caught:
        read(loader, 0)
    assert "Traceback" not in str(caught.value)
