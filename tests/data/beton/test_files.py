"""The files of a data set: built once, waited for, built anew where the images or the settings changed, checked."""

import json
import os
import shutil
import threading
import time

import pytest
from PIL import Image
from small_betons import JPG, RAW, build_synthetic

from fastdhm.data.beton import files as beton
from fastdhm.data.beton import format as beton_format
from fastdhm.data.beton.files import beton_path, build, check, ensure, verify
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.sources.load import load_sources
from fastdhm.data.sources.synthetic import SyntheticSource
from fastdhm.errors import UserError
from fastdhm.system.folders import held


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
    waiting.join(120)
    assert len(said) == 1, "it built again what had just been built"


def test_ensure_builds_once_and_again_when_stale(tmp_path):
    said = []

    def run(count=40, settings=RAW):
        source = SyntheticSource("train", count) if count else None
        return ensure(source, tmp_path, "synthetic", "train", settings, workers=1, say=said.append)

    path = run()
    assert len(said) == 1
    assert "does not exist" in said[0]
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
    with pytest.raises(UserError, match=r"is cut short.*images to build it from are not there"):
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
        pytest.param(_overwrite_index, "index is outside the file|does not match", id="index-overwritten"),
        pytest.param(_other_file, "does not match its manifest", id="another-file"),
        pytest.param(_remove_manifest, "has no manifest", id="no-manifest"),
        pytest.param(_spoil_manifest, "is not a manifest", id="manifest-spoilt"),
        pytest.param(_edit_manifest(format_version=99), "format version 99", id="another-version"),
        pytest.param(_edit_manifest(settings="raw"), "is not a manifest", id="settings-of-another-kind"),
        pytest.param(_edit_manifest(settings={"grey_range": [1, 2, 3]}), "is not a manifest", id="range-of-three"),
        pytest.param(_edit_manifest(settings={"grey_range": [2, 1]}), "grey range is 2 to 1", id="range-upside-down"),
        pytest.param(_edit_manifest(count=3), "does not match its manifest", id="another-count"),
    ],
)
def test_damage_is_found_by_the_quick_check(tmp_path, damage, message):
    path = build_synthetic(tmp_path)
    damage(path)
    with pytest.raises(UserError, match=message):
        check(path)


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
