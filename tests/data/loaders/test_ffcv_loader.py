"""FFCV's loader: the same batches as torch's, and what its thread and its compiled code must not do."""

import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from batches import OPTIONS, assert_same, read

from fastdhm.data.beton.files import build
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.loaders import ffcv_loader
from fastdhm.data.loaders.build import build_loader
from fastdhm.data.loaders.ffcv_loader import _epoch_class
from fastdhm.data.loaders.loader import LoaderOptions
from fastdhm.data.sources.synthetic import SyntheticSource
from fastdhm.errors import UserError
from fastdhm.system.waiting import WaitedInVain


@pytest.mark.parametrize("crop", ["pad", "center", "shift"])
def test_ffcv_and_torch_agree_to_the_byte_without_resizing(ffcv, make, crop):
    assert_same(read(make("ffcv", crop=crop), 1), read(make("torch", crop=crop), 1))


def test_ffcv_and_torch_cut_the_same_boxes_without_resizing(ffcv, make, photo_root):
    """Squares of 64 out of pictures whose short side is 64 need no resizing, wherever they are cut."""
    options = {"dataset": f"folder:{photo_root}", "batch_size": 24, "crop": "shift", "image_size": 64}
    (ours,), (theirs,) = read(make("ffcv", **options), 1), read(make("torch", **options), 1)
    same = [torch.equal(a, b) for a, b in zip(ours.image_BHWC, theirs.image_BHWC, strict=True)]
    assert sum(same) >= 8  # the pictures with that short side


@pytest.mark.parametrize("crop", ["enlarge", "whole"])
def test_ffcv_and_torch_stretch_alike(ffcv, make, odd_root, crop):
    """To one level of 255, for pictures that grow, shrink, or both, from 1 x 1 to 900 x 2."""
    options = {"dataset": f"folder:{odd_root}", "crop": crop, "batch_size": 28, "image_size": (48, 24)}
    (ours,), (theirs,) = read(make("ffcv", **options), 2), read(make("torch", **options), 2)
    assert torch.equal(ours.index_B, theirs.index_B)
    assert (ours.image_BHWC.int() - theirs.image_BHWC.int()).abs().max() <= 1


def test_jpg_is_decoded_by_ffcv(ffcv, make, photo_root):
    options = {"dataset": f"folder:{photo_root}", "batch_size": 24, "crop": "center", "image_size": 48}
    jpg = ImageSettings(mode="jpg", quality=95)
    (raw,), (lossy,) = read(make("ffcv", **options), 0), read(make("ffcv", settings=jpg, **options), 0)
    assert (raw.image_BHWC.float() - lossy.image_BHWC.float()).abs().mean() < 3


def test_ffcv_thread_error_reaches_the_reader(ffcv, make):
    loader = make("ffcv")
    jobs = loader._jobs

    def fail(epoch, batches):
        yield from itertools.islice(jobs(epoch, batches), 2)
        raise ZeroDivisionError("from the thread")

    loader._jobs = fail
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="from the thread"):
        read(loader, 0)
    assert time.monotonic() - started < 120
    loader._jobs = jobs
    assert len(read(loader, 0)) == 6


def test_ffcv_boxes_are_the_same_however_many_are_drawn_at_once(ffcv, make, photo_root, monkeypatch):
    options = {"dataset": f"folder:{photo_root}", "batch_size": 5, "crop": "scale", "drop_last": False}
    all_at_once = read(make("ffcv", **options), 3)
    monkeypatch.setattr(ffcv_loader, "BOXES_AT_ONCE", 10)
    assert_same(all_at_once, read(make("ffcv", **options), 3))


def test_ffcv_thread_that_vanishes_is_noticed(ffcv, make, monkeypatch):
    loader = make("ffcv")
    monkeypatch.setattr(_epoch_class(), "run", lambda self: None)
    with pytest.raises(UserError, match="ended without finishing"):
        read(loader, 0)


def test_ffcv_thread_that_stands_still_is_told_and_then_left(ffcv, make, monkeypatch):
    """As in a deadlock of numba's, or a network drive that is gone; nothing can end a thread."""
    loader, release = make("ffcv", batch_size=16, seed=77), threading.Event()
    monkeypatch.setattr(_epoch_class(), "_make", lambda self, job: release.wait(600))
    monkeypatch.setenv("FASTDHM_WAIT_SECONDS", "1")
    started = time.monotonic()
    try:
        with pytest.raises(WaitedInVain, match=r"data did not come in [0-9]+ s: FFCV is reading .*\.beton"):
            read(loader, 0)
        assert time.monotonic() - started < 120
    finally:
        release.set()


def test_ffcv_file_cut_short_while_it_is_read_is_told(ffcv, build_raw, tmp_path):
    """To read what is no longer there would end the process without a word."""
    _, built = build_raw("synthetic:600")
    path = Path(shutil.copytree(built.parent, tmp_path / "copy"), built.name)
    loader = build_loader("ffcv", LoaderOptions(batch_size=8, image_size=32, workers=1), beton=path)
    with pytest.raises(UserError, match="was cut short while it was read"), loader.epoch(0) as batches:
        next(batches)
        os.truncate(path, path.stat().st_size // 2)
        list(batches)
    loader.close()


def test_ffcv_needs_its_file_no_more_once_it_is_open(ffcv, build_raw, tmp_path):
    _, built = build_raw("synthetic:600")
    path = Path(shutil.copytree(built.parent, tmp_path / "copy"), built.name)
    options = LoaderOptions(batch_size=8, image_size=32, workers=1)
    loader, whole = (build_loader("ffcv", options, beton=beton) for beton in (path, built))
    shutil.rmtree(path.parent)
    assert_same(read(loader, 0), read(whole, 0))
    loader.close()


@pytest.mark.slow
def test_numbas_optimiser_changes_no_byte(ffcv):
    """Other tests go without it, see tests/conftest.py: those that compare bytes pass with it too."""
    here = Path(__file__)  # pytest takes no path with brackets
    program = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", here.name, "-k", "agree or cut_the_same"]
    ended = subprocess.run(
        program, cwd=here.parent, env=os.environ | {"NUMBA_OPT": "3"}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout


def test_ffcv_leaves_torchs_threads_alone(ffcv, make):
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            read(make("ffcv", workers=2, seed=100 + count), 0)  # another seed: not a shared loader
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


def test_ffcv_takes_any_number_of_workers(ffcv, make):
    one = read(make("ffcv", workers=1), 0)
    for workers in (0, 1000):
        assert_same(one, read(make("ffcv", workers=workers), 0))


ON_ONE_PROCESSOR = """
import os, sys
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
from pathlib import Path
from fastdhm.data.loaders.build import LoaderOptions, build_loader

options = LoaderOptions(batch_size=8, image_size=32, workers=1)
loader = build_loader("ffcv", options, beton=Path(sys.argv[1]))
with loader.epoch(0) as batches:
    print(sum(len(batch.target_B) for batch in batches))
"""


@pytest.mark.slow
def test_ffcv_ends_with_the_process_on_one_processor(ffcv, tmp_path):
    """What its thread leaves to others, of which one processor has none, is not waited for at the process's end."""
    path = tmp_path / "b" / "train.beton"
    build(SyntheticSource("train", 16), path, ImageSettings(), workers=1, progress=False)
    program = [sys.executable, "-c", ON_ONE_PROCESSOR, str(path)]
    run = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.strip()) == (0, "16"), run.stderr


def test_cut_short_file_is_refused_before_ffcv_opens_it(ffcv, tmp_path):
    path = tmp_path / "b" / "train.beton"
    build(SyntheticSource("train", 64), path, ImageSettings(), workers=1, progress=False)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(UserError, match="cut short"):
        build_loader("ffcv", LoaderOptions(**OPTIONS), beton=path)
