import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdhm.data.beton import build as _build
from fastdhm.data.beton import files as beton
from fastdhm.data.beton import format as beton_format
from fastdhm.data.beton.files import beton_path, build, check, ensure, read_manifest, verify
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.beton.source import BetonSource
from fastdhm.data.loaders.ffcv_library import load
from fastdhm.data.sources.load import load_sources
from fastdhm.data.sources.synthetic import SyntheticSource
from fastdhm.errors import UserError
from fastdhm.system.files import held

RAW, JPG = ImageSettings(), ImageSettings(max_resolution=60, mode="jpg", quality=90)


def build_synthetic(folder, count=40, **options):
    path = folder / "built" / "train.beton"
    build(SyntheticSource("train", count), path, RAW, workers=1, progress=False, **options)
    return path


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_types_are_ffcvs(ffcv):
    types = load().types
    assert types.HeaderType == beton_format.HEADER
    assert types.FieldDescType == beton_format.FIELD
    assert types.ALLOC_TABLE_TYPE == beton_format.ALLOCATION
    assert types.get_metadata_type([types.RGBImageField(), types.IntField()]) == beton_format.SAMPLE
    assert types.CURRENT_VERSION == beton_format.FFCV_VERSION
    assert [types.TYPE_ID_HANDLER[number].__name__ for _, number in beton_format.FIELDS] == [
        "RGBImageField",
        "IntField",
    ]
    assert beton_format.MODES["jpg"] == load().JPG


def test_ffcvs_own_loader_reads_the_file(ffcv, tmp_path):
    path = build_synthetic(tmp_path)
    threads = torch.get_num_threads()
    loader = load().Loader(str(path), batch_size=40, num_workers=1, drop_last=False)
    ((images, targets),) = [tuple(x.clone() for x in batch) for batch in loader]
    torch.set_num_threads(threads)
    source = SyntheticSource("train", 40)
    assert np.array_equal(images.numpy(), source.pixels(np.arange(40)))
    assert np.array_equal(targets.numpy()[:, 0], source.target_N)


@pytest.mark.parametrize("settings", [RAW, JPG], ids=lambda settings: settings.tag)
def test_odd_images_build_and_verify(odd_root, tmp_path, settings):
    train, _ = load_sources(f"folder:{odd_root}", tmp_path)
    path = tmp_path / "b" / "train.beton"
    built = build(train, path, settings, workers=2, progress=False)
    assert built == verify(path, progress=False) == read_manifest(path)
    assert (built.count, built.class_counts, built.skipped) == (28, (14, 14), ())
    assert (built.min_side, built.max_side) == (1, 900 if settings is RAW else 60)
    assert names(path.parent) == ["train.beton", "train.json"]


def test_smart_keeps_the_pixels_of_small_images(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for side in (96, 97):
            Image.effect_noise((side, side), 60).convert("RGB").save(tmp_path / split / "a" / f"{side}.png")
    train, _ = load_sources(f"folder:{tmp_path}", tmp_path)
    path = tmp_path / "b" / "train.beton"
    build(train, path, ImageSettings(mode="smart"), workers=1, progress=False)
    index = beton_format.read_index(path)
    assert index.sample_N["f0"]["mode"].tolist() == [beton_format.MODES["raw"], beton_format.MODES["jpg"]]
    stored, source = BetonSource(path), [np.asarray(train.image(i)) for i in range(2)]
    assert np.array_equal(np.asarray(stored.image(0)), source[0])
    assert not np.array_equal(np.asarray(stored.image(1)), source[1])
    verify(path, progress=False)


@pytest.mark.parametrize(
    ("dataset", "wishes", "tag"),
    [
        ("imagenet", {}, "smart90-500px"),
        ("imagenet", {"store": "raw", "size": 256}, "raw-256px"),
        ("folder:x", {"store": "jpg", "size": 0, "quality": 95}, "jpg95"),
        ("folder:x", {"quality": 80}, "smart80-500px"),
        ("cifar10", {}, "raw"),
        ("cifar10", {"store": "jpg"}, "jpg90"),
        ("market1501", {"size": 0}, "raw"),
    ],
    ids=str,
)
def test_how_a_data_set_is_stored(dataset, wishes, tag):
    assert ImageSettings.for_dataset(dataset, **wishes).tag == tag


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"store": "png"}, "image mode 'png' is not known; choose raw, jpg, smart"),
        ({"size": -3}, "maximum resolution -3"),
        ({"store": "jpg", "quality": 101}, "JPEG quality 101"),
        ({"store": "raw", "quality": 90}, "store quality 90: plain pixels have none"),
    ],
    ids=str,
)
def test_how_a_data_set_cannot_be_stored(wishes, message):
    with pytest.raises(UserError, match=message):
        ImageSettings.for_dataset("imagenet", **wishes)


def test_same_source_gives_the_same_bytes(odd_root, tmp_path):
    train, _ = load_sources(f"folder:{odd_root}", tmp_path)
    paths = [tmp_path / str(workers) / "train.beton" for workers in (1, 2)]
    first, second = (build(train, path, JPG, workers=w + 1, progress=False) for w, path in enumerate(paths))
    assert first.sha256 == second.sha256


def test_images_that_do_not_fit_a_page_start_the_next(monkeypatch, tmp_path):
    monkeypatch.setattr(beton_format, "PAGE_BYTES", 8192)
    path = build_synthetic(tmp_path)
    index = beton_format.read_index(path)
    first, last = index.allocation_N["ptr"], index.allocation_N["ptr"] + index.allocation_N["size"] - 1
    assert (first // 8192 == last // 8192).all()
    verify(path, progress=False)


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


# What can happen to a build, and to a file.


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
    assert time.monotonic() - started < 20
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
    deadline = time.monotonic() + 30
    while not (workers := _children(process.pid)) or not list(path.parent.glob(".fastdhm-*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.7)
    process.send_signal(getattr(signal, name))
    process.wait(20)
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


def test_failed_rebuild_keeps_the_old_file(bad_root, odd_root, tmp_path):
    path = tmp_path / "b" / "train.beton"
    good, _ = load_sources(f"folder:{odd_root}", tmp_path)
    bad, _ = load_sources(f"folder:{bad_root}", tmp_path)
    manifest = build(good, path, JPG, workers=1, progress=False)
    with pytest.raises(UserError):
        build(bad, path, JPG, workers=1, progress=False)
    assert verify(path, progress=False) == manifest


def test_crash_between_file_and_manifest_is_noticed(monkeypatch, tmp_path):
    path = build_synthetic(tmp_path)
    monkeypatch.setattr(beton, "_describe", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build_synthetic(tmp_path, 44)
    with pytest.raises(UserError, match="has no manifest"):
        check(path)
    assert beton.why_stale(path, SyntheticSource("train", 44), RAW)


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


def test_second_builder_waits_and_says_so(tmp_path):
    said, source = [], SyntheticSource("train", 40)
    path = beton_path(tmp_path, "synthetic", "train", RAW)
    options = {"workers": 1, "say": said.append}
    with held(path.parent, "a test", print):
        waiting = threading.Thread(target=ensure, args=(source, tmp_path, "synthetic", "train", RAW), kwargs=options)
        waiting.start()
        while not said:
            time.sleep(0.01)
        assert "waiting for this process" in said[0]
        beton._build(source, path, RAW, 1, False, progress=False)
    waiting.join(20)
    assert len(said) == 1, "it built again what had just been built"


def test_ensure_builds_once_and_again_when_stale(tmp_path):
    said = []

    def run(count=40, settings=RAW):
        source = SyntheticSource("train", count) if count else None
        return ensure(source, tmp_path, "synthetic", "train", settings, workers=1, say=said.append)

    path = run()
    assert len(said) == 1
    assert "is not there" in said[0]
    assert run() == path
    assert run(None) == path
    assert len(said) == 1
    run(48)
    assert "images have changed" in said[1]
    with path.open("r+b") as file:
        file.truncate(5000)
    run(48)
    assert "is cut short" in said[2]
    verify(path, progress=False)
    with path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(UserError, match=r"is cut short.*are not there to build it from"):
        run(None)


def _cut(path):
    os.truncate(path, path.stat().st_size - 1000)


def _cut_to_nothing(path):
    os.truncate(path, 0)


def _overwrite_index(path):
    with path.open("r+b") as file:
        file.seek(beton_format.DATA_OFFSET + 8)
        file.write(b"\xff" * 4)


def _remove_manifest(path):
    path.with_suffix(".json").unlink()


def _other_file(path):
    other = build_synthetic(path.parent / "other", 40)
    data = bytearray(other.read_bytes())
    data[beton_format.DATA_OFFSET + 16] ^= 1  # a label
    path.write_bytes(data)


def _edit_manifest(**values):
    def edit(path):
        place = path.with_suffix(".json")
        place.write_text(json.dumps({**json.loads(place.read_text()), **values}))

    return edit


def _spoil_manifest(path):
    path.with_suffix(".json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(_cut, "is cut short", id="cut-short"),
        pytest.param(_cut_to_nothing, "is cut short", id="empty"),
        pytest.param(_overwrite_index, "points outside itself|does not match", id="index-overwritten"),
        pytest.param(_other_file, "does not match its manifest", id="another-file"),
        pytest.param(_remove_manifest, "has no manifest", id="no-manifest"),
        pytest.param(_spoil_manifest, "is not a manifest", id="manifest-spoilt"),
        pytest.param(_edit_manifest(format_version=99), "format version 99", id="another-version"),
        pytest.param(_edit_manifest(settings="raw"), "is not a manifest", id="settings-of-another-kind"),
        pytest.param(_edit_manifest(settings={"grey_range": [1, 2, 3]}), "is not a manifest", id="range-of-three"),
        pytest.param(_edit_manifest(settings={"grey_range": [2, 1]}), "grey range 2 to 1", id="range-upside-down"),
        pytest.param(_edit_manifest(count=3), "does not match its manifest", id="another-count"),
    ],
)
def test_damage_is_found_by_the_quick_check(tmp_path, damage, message):
    path = build_synthetic(tmp_path)
    damage(path)
    with pytest.raises(UserError, match=message):
        check(path)


def test_ffcv_version_in_the_file_is_checked(tmp_path):
    path = build_synthetic(tmp_path)
    with path.open("r+b") as file:
        file.write(b"\x07\x00")
    with pytest.raises(UserError, match="not a .beton file of version 2"):
        check(path)


def test_damaged_pixels_are_found_by_verify(tmp_path, photo_root):
    train, _ = load_sources(f"folder:{photo_root}", tmp_path)
    for settings, message in ((JPG, "images cannot be decoded: sample 0"), (RAW, "its checksum is another")):
        path = tmp_path / settings.tag / "train.beton"
        build(train, path, settings, workers=1, progress=False)
        with path.open("r+b") as file:
            file.seek(int(beton_format.read_index(path).allocation_N["ptr"][0]))
            file.write(b"\0" * 50)
        check(path)
        with pytest.raises(UserError, match=message):
            verify(path, progress=False)


@pytest.mark.parametrize("values", [{"mode": "png"}, {"quality": 0}, {"quality": 101}, {"max_resolution": 0}], ids=str)
def test_image_settings_mistakes(values):
    with pytest.raises(UserError):
        dataclasses.replace(RAW, **values)


def test_paths_tell_data_sets_and_settings_apart(tmp_path):
    paths = {
        beton_path(tmp_path, dataset, "train", settings)
        for dataset in ("cifar10", "synthetic:8", "folder:/a/x", "folder:/b/x")
        for settings in (RAW, JPG, ImageSettings(max_resolution=60, mode="jpg", quality=80))
    }
    assert len(paths) == 12
    assert beton_path(tmp_path, "cifar10", "val", RAW) == tmp_path / "beton" / "cifar10-raw" / "val.beton"


def test_images_that_change_while_they_are_built_are_noticed_by_the_next_run(monkeypatch, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "f" / split / "a").mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / "f" / split / "a" / f"{i}.png")
    write_images = beton.write_images

    def while_it_builds(*arguments, **options):
        written = write_images(*arguments, **options)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "f/train/a/1.png")
        return written

    monkeypatch.setattr(beton, "write_images", while_it_builds)
    source, path = load_sources(f"folder:{tmp_path / 'f'}", tmp_path)[0], tmp_path / "b" / "train.beton"
    build(source, path, RAW, workers=1, progress=False)
    again = load_sources(f"folder:{tmp_path / 'f'}", tmp_path)[0]
    assert beton.why_stale(path, again, RAW) == "the images have changed since it was built"


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
