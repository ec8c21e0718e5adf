"""Building a .beton file: what it holds, bad images, and whatever can end a build before its end."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_betons import JPG, RAW, build_synthetic, names

from fastdhm.data.beton import build as _build
from fastdhm.data.beton import format as beton_format
from fastdhm.data.beton.files import build, read_manifest, verify
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.sources.folder import FolderSource
from fastdhm.data.sources.load import load_sources
from fastdhm.data.sources.synthetic import SyntheticSource
from fastdhm.errors import UserError


@pytest.mark.parametrize("settings", [RAW, JPG], ids=lambda settings: settings.tag)
def test_odd_images_build_and_verify(odd_root, tmp_path, settings):
    train, _ = load_sources(f"folder:{odd_root}", tmp_path)
    path = tmp_path / "b" / "train.beton"
    built = build(train, path, settings, workers=2, progress=False)
    assert built == verify(path, progress=False) == read_manifest(path)
    assert (built.count, built.class_counts, built.skipped) == (28, (14, 14), ())
    assert (built.min_side, built.max_side) == (1, 900 if settings is RAW else 60)
    assert names(path.parent) == ["train.beton", "train.json"]


def test_same_source_gives_the_same_bytes(odd_root, tmp_path):
    train, _ = load_sources(f"folder:{odd_root}", tmp_path)
    paths = [tmp_path / str(workers) / "train.beton" for workers in (1, 2)]
    first, second = (build(train, path, JPG, workers=w + 1, progress=False) for w, path in enumerate(paths))
    assert first.sha256 == second.sha256


def test_all_bad_files_are_listed(bad_root, bad_names, tmp_path):
    train, _ = load_sources(f"folder:{bad_root}", tmp_path)
    path = tmp_path / "b" / "train.beton"
    with pytest.raises(UserError, match=r"3 of 31 images cannot be read") as caught:
        build(train, path, JPG, workers=2, progress=False)
    for name in bad_names:
        assert name in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    assert names(path.parent) == ["train-bad-files.txt"]


def test_long_list_of_bad_files_is_cut_in_the_message_only(tmp_path):
    bad = {i: f"/x/{i:03}.jpg: not a complete image" for i in range(50)}
    message = str(_build.bad_files_error(bad, 100, tmp_path / "list.txt"))
    assert "019.jpg" in message
    assert "020.jpg" not in message
    assert "and 30 more" in message
    assert len((tmp_path / "list.txt").read_text().splitlines()) == 50


def test_skip_bad_leaves_them_out_and_records_them(bad_root, bad_names, tmp_path):
    train, _ = load_sources(f"folder:{bad_root}", tmp_path)
    path = tmp_path / "b" / "train.beton"
    manifest = build(train, path, JPG, workers=1, skip_bad=True, progress=False)
    assert (manifest.count, manifest.class_counts) == (28, (14, 14))
    assert len(manifest.skipped) == 3
    assert all(any(name in skipped for skipped in manifest.skipped) for name in bad_names)
    verify(path, progress=False)
    assert names(path.parent) == ["train.beton", "train.json"]


def test_all_images_bad_is_an_error_even_when_skipping(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "f" / split / "a").mkdir(parents=True)
        (tmp_path / "f" / split / "a" / "x.jpg").write_text("text")
    train, _ = load_sources(f"folder:{tmp_path / 'f'}", tmp_path)
    with pytest.raises(UserError, match="1 of 1 images"):
        build(train, tmp_path / "b" / "train.beton", JPG, workers=1, skip_bad=True, progress=False)


def test_image_too_large_to_store_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(_build, "PAGE_BYTES", 1000)
    settings = ImageSettings(max_resolution=30)
    with pytest.raises(UserError, match=r"synthetic/train\[0\]: 30 x 30 pixels are too many"):
        build(SyntheticSource("train", 4), tmp_path / "b" / "train.beton", settings, workers=1, progress=False)


class DeadlyWorker(SyntheticSource):
    """Its worker dies at sample 300, as if the system had run out of memory."""

    def pixels(self, index_B):
        if 300 in index_B and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().pixels(index_B)


def test_killed_worker_ends_the_build(tmp_path):
    source = DeadlyWorker("train", 600)
    source.parent = os.getpid()
    path = tmp_path / "b" / "train.beton"
    started = time.monotonic()
    with pytest.raises(UserError, match="worker process [0-9]+ was killed, as when memory runs out"):
        build(source, path, RAW, workers=2, progress=False)
    assert time.monotonic() - started < 120  # it was not waited for without end
    assert names(path.parent) == []


SLOW_BUILD = """
import signal, sys, time
from pathlib import Path
from fastdhm.data.beton.files import ImageSettings, build
from fastdhm.data.sources.synthetic import SyntheticSource

class Slow(SyntheticSource):
    def pixels(self, index_B):
        time.sleep(0.5 if len(index_B) > 1 else 0)
        return super().pixels(index_B)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
build(Slow("train", 20_000), Path(sys.argv[1]), ImageSettings(), workers=2, progress=False)
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_interrupted_build_leaves_nothing_under_the_final_name(tmp_path, name):
    path = tmp_path / "b" / "train.beton"
    process = subprocess.Popen([sys.executable, "-c", SLOW_BUILD, path], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (workers := _children(process.pid)) or not list(path.parent.glob(".fastdhm-*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.7)
    process.send_signal(getattr(signal, name))
    process.wait(120)
    assert not path.exists()
    assert not path.with_suffix(".json").exists()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "its workers live on"
        time.sleep(0.05)
    build_synthetic(tmp_path)  # nothing it left behind is in the way


def _children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def test_full_disk_is_the_users_to_solve(monkeypatch, tmp_path):
    class FullDisk(beton_format.BetonWriter):
        def add(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_build, "BetonWriter", FullDisk)
    with pytest.raises(UserError, match=r"cannot write .*/built.*no space left"):
        build_synthetic(tmp_path)
    assert names(tmp_path / "built") == []


def test_space_is_asked_for_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setattr(_build.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"not enough disk space .* 1,000 are free"):
        build_synthetic(tmp_path)


def test_broken_links_and_pipes_are_bad_images_like_others(bad_root, bad_names, tmp_path):
    """A link to nothing must not stop the list short, and opening a pipe would wait for ever."""
    (bad_root / "train/cats/dangling.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(bad_root / "train/dogs/pipe.png")
    train, _ = load_sources(f"folder:{bad_root}", tmp_path)
    path = tmp_path / "b" / "train.beton"
    with pytest.raises(UserError) as caught:
        build(train, path, JPG, workers=1, progress=False)
    for name in (*bad_names, "dangling.jpg", "pipe.png"):
        assert name in str(caught.value)
    manifest = build(train, path, JPG, workers=1, skip_bad=True, progress=False)
    assert len(manifest.skipped) == 5


def test_large_photographs_are_stored_alike_whether_or_not_they_are_decoded_smaller(tmp_path):
    rng, settings = np.random.default_rng(0), ImageSettings(max_resolution=60, mode="raw")
    (tmp_path / "train/a").mkdir(parents=True)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    coarse.resize((803, 601), Image.Resampling.BICUBIC).save(tmp_path / "train/a/0.jpg", quality=95)
    source = FolderSource(tmp_path / "train", f"folder:{tmp_path}", "train")
    smaller = source.image(0, _build.Encoder(source, settings)._times_allowed)
    assert smaller.size == (201, 151)
    (height, width, pixels), (h, w, others) = (_build.encode(image, settings) for image in (source.image(0), smaller))
    assert (height, width) == (h, w)
    difference = np.frombuffer(pixels, np.uint8).astype(int) - np.frombuffer(others, np.uint8)
    assert np.abs(difference).mean() < 1.5 and np.abs(difference).max() < 25
