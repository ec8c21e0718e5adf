import gc
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdhm.data import open_loaders
from fastdhm.data.beton.files import build, ensure
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.loaders import ffcv_library as _ffcv
from fastdhm.data.loaders import ffcv_loader
from fastdhm.data.loaders.build import build_loader, pick_kind
from fastdhm.data.loaders.crops import crop_boxes
from fastdhm.data.loaders.ffcv_loader import _epoch_class
from fastdhm.data.loaders.loader import LoaderOptions
from fastdhm.data.sources.load import load_sources
from fastdhm.data.sources.synthetic import SyntheticSource
from fastdhm.errors import UserError
from fastdhm.system.waiting import WaitedInVain

ALL_KINDS = pytest.mark.parametrize("kind", ["ffcv", "torch", "resident"], indirect=True)
KINDS = pytest.mark.parametrize("kind", ["ffcv", "torch"], indirect=True)
SYNTHETIC = "synthetic:203"
OPTIONS = {
    "batch_size": 32,
    "image_size": 32,
    "crop": "pad",
    "crop_ratio": 1.0,
    "seed": 0,
    "workers": 1,
    "shuffle": True,
    "drop_last": True,
}
OPEN = {
    "batch_size": 7,
    "eval_batch_size": 7,
    "image_size": 16,
    "crop": "scale",
    "crop_ratio": 1.0,
    "seed": 0,
    "workers": 2,
}


@pytest.fixture(scope="session")
def make(build_raw):
    """``make(kind, ...)``: a loader of a small training set; equal ones are shared, as each of FFCV's compiles anew."""
    made = {}

    def get(kind, dataset=SYNTHETIC, settings=None, **options):
        source, path = build_raw(dataset, settings)
        key = (kind, path, *sorted(options.items()))
        if key not in made:
            made[key] = build_loader(kind, LoaderOptions(**{**OPTIONS, **options}), source=source, beton=path)
        return made[key]

    yield get
    for loader in made.values():
        loader.close()


def read(loader, epoch, start_batch=0):
    with loader.epoch(epoch, start_batch) as batches:
        return list(batches)


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.index_B, other.index_B)
        assert torch.equal(batch.target_B, other.target_B)
        assert torch.equal(batch.image_BHWC, other.image_BHWC)


@ALL_KINDS
def test_batches_hold_the_right_samples(make, build_raw, kind):
    source, _ = build_raw(SYNTHETIC)
    loader = make(kind)
    batches = read(loader, 0)
    assert len(batches) == len(loader) == 6
    assert loader.num_samples == 203
    for batch in batches:
        assert batch.image_BHWC.dtype == torch.uint8
        assert batch.target_B.dtype == batch.index_B.dtype == torch.int64
        assert batch.image_BHWC.shape == (32, 32, 32, 3)
        assert np.array_equal(batch.image_BHWC.numpy(), source.pixels(batch.index_B.numpy()))
        assert np.array_equal(batch.target_B.numpy(), source.target_N[batch.index_B.numpy()])
    index = torch.cat([batch.index_B for batch in batches])
    assert len(index.unique()) == len(index)


@ALL_KINDS
def test_validation_keeps_order_and_the_last_partial_batch(make, kind):
    batches = read(make(kind, crop="center", shuffle=False, drop_last=False), 0)
    assert [len(batch.target_B) for batch in batches] == [32] * 6 + [11]
    assert torch.equal(torch.cat([batch.index_B for batch in batches]), torch.arange(203))


@ALL_KINDS
def test_batch_of_one_keeps_its_dimension(make, kind):
    batch = read(make(kind, batch_size=101, crop="center", shuffle=False, drop_last=False), 0)[-1]
    assert (batch.image_BHWC.shape, batch.target_B.shape, batch.index_B.shape) == ((1, 32, 32, 3), (1,), (1,))


@ALL_KINDS
def test_epochs_and_seeds_differ_and_repeat(make, kind):
    loader = make(kind)
    first, second = read(loader, 0), read(loader, 1)
    assert not torch.equal(first[0].index_B, second[0].index_B)
    assert_same(first, read(loader, 0))
    assert not torch.equal(first[0].index_B, read(make(kind, seed=1), 0)[0].index_B)


@KINDS
@pytest.mark.parametrize("crop", ["pad", "scale", "shift", "center"])
def test_worker_count_does_not_matter(make, photo_root, kind, crop):
    options = {"dataset": f"folder:{photo_root}", "batch_size": 5, "crop": crop, "crop_ratio": 0.875}
    one, two = (read(make(kind, workers=workers, **options), 2) for workers in (1, 2))
    assert_same(one, two)


@ALL_KINDS
@pytest.mark.parametrize("start", [0, 1, 4, 6])
def test_start_batch_goes_on_where_the_epoch_was_left(make, kind, start):
    assert_same(read(make(kind), 3)[start:], read(make(kind), 3, start))


@KINDS
def test_start_batch_with_crops(make, photo_root, kind):
    options = {"dataset": f"folder:{photo_root}", "batch_size": 5, "crop": "scale"}
    assert_same(read(make(kind, **options), 3)[2:], read(make(kind, **options), 3, 2))


@ALL_KINDS
def test_start_batch_outside_the_epoch(make, kind):
    with pytest.raises(ValueError, match="start_batch 7"):
        read(make(kind), 0, 7)


@pytest.mark.parametrize("crop", ["pad", "center", "shift"])
def test_ffcv_and_torch_agree_to_the_byte_without_resizing(ffcv, make, crop):
    assert_same(read(make("ffcv", crop=crop), 1), read(make("torch", crop=crop), 1))


def test_ffcv_and_torch_cut_the_same_boxes_without_resizing(ffcv, make, photo_root):
    """Squares of 64 out of pictures whose short side is 64 need no resizing, wherever they are cut."""
    options = {"dataset": f"folder:{photo_root}", "batch_size": 24, "crop": "shift", "image_size": 64}
    (ours,), (theirs,) = read(make("ffcv", **options), 1), read(make("torch", **options), 1)
    same = [torch.equal(a, b) for a, b in zip(ours.image_BHWC, theirs.image_BHWC, strict=True)]
    assert sum(same) >= 8  # the pictures with that short side


@KINDS
@pytest.mark.parametrize(
    ("crop", "image_size"),
    [
        ("scale", 32), ("shift", 32), ("center", 32),
        ("scale", (48, 24)), ("shift", (20, 40)), ("enlarge", (64, 32)), ("whole", (128, 64)),
    ],
    ids=str,
)  # fmt: skip
def test_boxes_are_cut_and_resized(make, build_raw, photo_root, kind, crop, image_size):
    """The pictures are ramps, so the mean colour of a cut-out tells where its middle was."""
    dataset = f"folder:{photo_root}"
    source, _ = build_raw(dataset)
    (batch,) = read(make(kind, dataset, crop=crop, crop_ratio=0.875, batch_size=24, image_size=image_size), 5)
    out_height, out_width = batch.image_BHWC.shape[1:3]
    assert image_size in (out_height, (out_height, out_width))
    size_B2 = np.array([source.image(int(i)).size for i in batch.index_B])
    width, height = size_B2.T
    top, left, h, w = crop_boxes(crop, height, width, batch.index_B.numpy(), 5, 0, 0.875, out_width / out_height).T
    means = batch.image_BHWC.float().mean(dim=(1, 2)).numpy()
    assert np.abs(means[:, 0] - 255 * (left + (w - 1) / 2) / (width - 1)).max() < 2.5
    assert np.abs(means[:, 1] - 255 * (top + (h - 1) / 2) / (height - 1)).max() < 2.5


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


@KINDS
@pytest.mark.parametrize("crop", ["scale", "center"])
def test_odd_images_load(make, odd_root, kind, crop):
    batches = read(make(kind, f"folder:{odd_root}", crop=crop, image_size=20, batch_size=28), 0)
    assert batches[0].image_BHWC.shape == (28, 20, 20, 3)


@ALL_KINDS
def test_global_generators_are_left_alone(make, kind):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    read(make(kind), 0)
    read(make(kind, workers=2), 0)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


@ALL_KINDS
def test_batches_are_the_readers_to_keep(make, kind):
    loader = make(kind, batch_size=8)
    with loader.epoch(0) as batches:
        copies = [(batch, batch.image_BHWC.clone()) for batch in batches]
    assert all(torch.equal(batch.image_BHWC, copy) for batch, copy in copies)


@ALL_KINDS
def test_two_loaders_at_once_do_not_disturb_each_other(make, kind):
    train, val = make(kind, workers=2), make(kind, workers=2, crop="center", shuffle=False, drop_last=False)
    alone = read(train, 0), read(val, 0)
    with train.epoch(0) as first, val.epoch(0) as second:
        pairs = list(zip(first, second, strict=False))
    assert_same([a for a, _ in pairs], alone[0])
    assert_same([b for _, b in pairs], alone[1][: len(pairs)])


@KINDS
def test_leaving_early_leaves_nothing_running(make, photo_root, kind):
    loader = make(kind, f"folder:{photo_root}", batch_size=2, workers=2)
    read(loader, 0)
    threads, processes = set(threading.enumerate()), set(multiprocessing.active_children())
    for epoch in range(4):
        with loader.epoch(epoch) as batches:
            next(batches)
    with pytest.raises(ZeroDivisionError), loader.epoch(4) as batches:
        1 / 0  # noqa: B018
    with loader.epoch(5):
        pass
    deadline = time.monotonic() + 20  # a queue's own thread ends a moment after its queue
    while not set(threading.enumerate()) <= threads and time.monotonic() < deadline:
        time.sleep(0.02)
    assert set(threading.enumerate()) <= threads
    assert set(multiprocessing.active_children()) <= processes


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
    assert time.monotonic() - started < 10
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
    monkeypatch.setattr(_epoch_class(), "_make", lambda self, job: release.wait(60))
    monkeypatch.setenv("FASTDHM_WAIT_SECONDS", "1")
    started = time.monotonic()
    try:
        with pytest.raises(WaitedInVain, match=r"data did not come in [12] s: FFCV is reading .*\.beton"):
            read(loader, 0)
        assert time.monotonic() - started < 10
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


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_read_that_does_not_return_names_the_file(photo_root, tmp_path, monkeypatch, workers):
    """As on a network drive that has gone."""
    source, _ = load_sources(f"folder:{photo_root}", photo_root)
    image, pipe = type(source).image, tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(type(source), "image", lambda self, i: pipe.read_bytes() if i == 5 else image(self, i))
    monkeypatch.setenv("FASTDHM_WAIT_SECONDS", "1")
    loader = build_loader("torch", LoaderOptions(batch_size=4, image_size=32, workers=workers), source=source)
    with pytest.raises(WaitedInVain, match=rf"data did not come in [12] s: .* is reading {source.label(5)}"):
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


@ALL_KINDS
@pytest.mark.parametrize("whole", [True, False], ids=["read whole", "left early"])
def test_many_epochs_leave_no_memory_behind(make, kind, whole):
    """An epoch's images are 2.4 MiB: were they kept, or a thread's buffers, the process would grow by 29 MiB."""
    loader = make(kind, "synthetic:800", workers=1 if kind == "ffcv" else 0, batch_size=400)

    def epochs(first, last):
        for epoch in range(first, last):
            with loader.epoch(epoch) as batches:
                assert len(list(batches) if whole else [next(batches)]) == (2 if whole else 1)
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), tracemalloc.get_traced_memory()[0], threading.active_count()

    epochs(0, 3)
    tracemalloc.start()
    try:
        before, after = epochs(3, 5), epochs(5, 17)
    finally:
        tracemalloc.stop()
    assert after[0] - before[0] < 12 << 20
    assert after[1] - before[1] < 512 << 10  # what Python itself keeps differs by version; one epoch's images are more
    assert after[2] <= before[2]


@ALL_KINDS
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 204}, "batch size 204 is larger than the 203 training images"),
        ({"batch_size": 0}, "batch size 0"),
        ({"image_size": -1}, "image size -1"),
        ({"image_size": (32, 0)}, r"image size \(32, 0\)"),
        ({"crop": "middle"}, "unknown crop 'middle'"),
        ({"crop_ratio": 0}, "crop ratio 0"),
        ({"workers": -1}, "workers -1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_mistakes(make, kind, values, message):
    with pytest.raises(UserError, match=message):
        make(kind, **values)


def test_absent_ffcv_is_said(monkeypatch):
    monkeypatch.setattr("fastdhm.data.loaders.build.why_not", lambda: "FFCV cannot be imported (no such module)")
    assert pick_kind("auto") == ("torch", "FFCV cannot be imported (no such module)")
    assert pick_kind("torch")[0] == "torch"
    with pytest.raises(UserError, match=r"apt-get install libopencv-dev .*fastdhm\[ffcv\]"):
        pick_kind("ffcv")
    with pytest.raises(UserError, match="known: auto, resident, ffcv, torch"):
        pick_kind("dali")


def test_failed_import_keeps_its_reason_and_torchs_threads(monkeypatch):
    def fail():
        torch.set_num_threads(1)
        raise ImportError("libturbojpeg.so.0: cannot open shared object file")

    before = torch.get_num_threads()
    monkeypatch.setattr(_ffcv, "_parts", fail)
    parts, reason = _ffcv._load.__wrapped__()
    assert parts is None
    assert "libturbojpeg.so.0" in reason
    assert torch.get_num_threads() == before


@ALL_KINDS
def test_open_loaders(tmp_path, kind):
    said = []
    options = {**OPEN, "crop": "pad", "image_size": 32} if kind == "resident" else OPEN
    data = open_loaders("synthetic:64", tmp_path, loader=kind, say=said.append, **options)
    assert (data.kind, len(data.classes), len(data.train), len(data.val)) == (kind, 10, 9, 3)
    assert [len(batch.target_B) for batch in read(data.val, 0)] == [7, 7, 2]
    assert len(said) == (2 if kind == "ffcv" else 0)
    open_loaders("synthetic:64", tmp_path, loader=kind, say=said.append, **options)
    assert len(said) == (2 if kind == "ffcv" else 0)


@KINDS
def test_open_loaders_skip_bad(bad_root, tmp_path, kind):
    said = []
    data = open_loaders(f"folder:{bad_root}", tmp_path, loader=kind, skip_bad=True, say=said.append, **OPEN)
    assert data.train.num_samples == 28
    assert len(read(data.train, 0)) == 4
    assert any("left out" in line for line in said)


def test_open_loaders_stops_at_bad_images(ffcv, bad_root, tmp_path):
    with pytest.raises(UserError, match="text.jpg"):
        open_loaders(f"folder:{bad_root}", tmp_path, loader="ffcv", **OPEN)


@pytest.mark.parametrize("mistake", ["class-in-train-only", "class-emptied", "folder-that-cannot-be-entered"])
def test_a_mistake_in_the_folders_is_no_reason_to_train_on_old_files(tmp_path, mistake):
    root, options = tmp_path / "images", {**OPEN, "loader": "resident", "image_size": 8, "crop": "pad"}
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (8, 8)).save(root / split / name / f"{i}.png")
    open_loaders(f"folder:{root}", tmp_path, **options)
    if mistake == "class-in-train-only":
        (root / "train/c").mkdir()
        Image.new("RGB", (8, 8)).save(root / "train/c/0.png")
    elif mistake == "class-emptied":
        shutil.rmtree(root / "val/b")
        (root / "val/b").mkdir()
    else:
        (root / "train/a/more").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match="train: c|val/b: this class folder holds no image|a/more: cannot be read"):
        open_loaders(f"folder:{root}", tmp_path, **options)


def test_files_that_lack_bad_images_serve_no_run_that_did_not_ask_for_it(bad_root, tmp_path):
    root, settings = tmp_path / "images", ImageSettings.for_dataset("folder:x")
    shutil.copytree(bad_root, root)
    source, options = load_sources(f"folder:{root}", tmp_path)[0], {"workers": 1, "say": lambda _: None}
    place = (tmp_path, f"folder:{root}", "train", settings)
    ensure(source, *place, skip_bad=True, **options)
    with pytest.raises(UserError, match="3 of 31 images cannot be read"):
        ensure(source, *place, **options)
    with pytest.raises(UserError, match="lacks 3 images that could not be read, and --skip-bad is not given"):
        ensure(None, *place, **options)
    assert ensure(None, *place, skip_bad=True, **options)


@ALL_KINDS
def test_a_range_of_grey_is_the_same_through_every_loader(tmp_path, kind):
    root, said = tmp_path / "xray", []
    for split in ("train", "val"):
        for name, value in (("dark", 1000), ("light", 3000)):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(np.full((16, 16), value + i, np.uint16)).save(root / split / name / f"{i}.png")
    options = {**OPEN, "batch_size": 8, "crop": "pad" if kind == "resident" else "scale", "say": said.append}

    def levels(grey_range):
        data = open_loaders(f"folder:{root}", tmp_path, loader=kind, grey_range=grey_range, **options)
        (batch,) = read(data.train, 0)
        return [sorted(set(batch.image_BHWC[batch.target_B == k].flatten().tolist())) for k in (0, 1)]

    assert levels(None) == [[3], [11]]
    assert any("8 images of 16-bit grey" in line and "--grey-range 0,4095" in line for line in said)
    assert levels((0, 4095)) == [[62], [187]]
    assert levels((0, 3003)) == [[85], [255]]
    assert levels(None) == [[3], [11]]


def test_betons_serve_when_the_images_are_gone(ffcv, odd_root, tmp_path):
    root, said = tmp_path / "images", []
    shutil.copytree(odd_root, root)
    first = open_loaders(f"folder:{root}", tmp_path, loader="ffcv", say=said.append, **OPEN)
    shutil.rmtree(root)
    said.clear()
    second = open_loaders(f"folder:{root}", tmp_path, loader="ffcv", say=said.append, **OPEN)
    assert "using the .beton files alone" in said[0]
    assert second.classes == first.classes == ("cats", "dogs")
    assert_same(read(first.train, 0), read(second.train, 0))
    with pytest.raises(UserError, match="does not exist"):
        open_loaders(f"folder:{root}", tmp_path, loader="torch", **OPEN)
