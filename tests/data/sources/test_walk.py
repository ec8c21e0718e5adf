"""What real drives, archives and desktops put into a folder of images."""

import errno
import os
import shutil
import time
import unicodedata

import pytest
from PIL import Image

from fastdhm.data.sources import walk as walking
from fastdhm.data.sources.folder import FolderSource, PictureSource, refuse_unreadable
from fastdhm.data.sources.load import load_sources
from fastdhm.data.sources.walk import SYSTEM_NAMES, ImagesGone, is_system, walk
from fastdhm.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Two classes, two pictures each, in both splits."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            fill(tmp_path / split / name, "0.png", "1.png")
    return tmp_path


def fill(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(folder / name, "PNG")
    return folder


def train_of(root):
    return load_sources(f"folder:{root}", root)[0]


def forbid(monkeypatch, *names, number=errno.EACCES):
    """Make folders of those names unreadable, for root too."""
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(os.fspath(path)) in names:
            raise OSError(number, os.strerror(number), path)
        return scandir(path)

    monkeypatch.setattr(walking.os, "scandir", refuse)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("cat/all", ".."),
        ("cat/all", "../.."),
        ("cat/all", "."),
        ("cat/all", "/"),
        ("cat/all", "../dog"),
        ("pet", "cat"),
    ],
    ids=["train", "data-set", "itself", "whole-disk", "other-class", "class-again"],
)
def test_a_link_that_leads_back_is_left_out_and_said(root, link, target):
    (root / "train" / link).symlink_to(target)
    train = train_of(root)
    assert (train.classes, len(train)) == (("cat", "dog"), 4)
    assert f"1 link to folders that already count elsewhere, such as {link}" in train.note


def test_links_that_lead_away_are_followed_once(root, tmp_path_factory):
    pool = fill(tmp_path_factory.mktemp("pool"), "a.png", "deep/b.png")
    (pool / "deep" / "round").symlink_to(pool)
    (root / "train/cat/more").symlink_to(pool)
    (root / "train/cat/again").symlink_to(pool / "deep")
    train = train_of(root)
    names = [train.label(i).split("train/")[1] for i in range(len(train))]
    assert sorted(names[:4]) == ["cat/0.png", "cat/1.png", "cat/again/b.png", "cat/more/a.png"]
    assert "2 links to folders" in train.note


def test_classes_may_be_links(root, tmp_path_factory):
    (root / "train/cow").symlink_to(fill(tmp_path_factory.mktemp("cows"), "a.png"))
    fill(root / "val/cow", "b.png")
    assert train_of(root).target_N.tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("name", [*SYSTEM_NAMES, ".Trash-1000", ".ipynb_checkpoints", "._cat", "thumbs.DB", "@EADIR"])
def test_what_systems_leave_is_no_class_and_not_learnt(root, name):
    assert is_system(name)
    fill(root / "train" / name, "THUMB.png")
    fill(root / "train/dog" / name, "sub/THUMB.png")
    train = train_of(root)
    assert (train.classes, len(train)) == (("cat", "dog"), 4)
    assert "2 hidden or system names" in train.note
    assert len(PictureSource(root / "train")) == 4


@pytest.mark.parametrize("name", ["recycler", "cvs", "Icon", "snapshot", "latest", "eaDir", "trash", "recycled"])
def test_words_that_may_be_classes_are_classes(name):
    assert not is_system(name)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_entered_stops_whoever_reads_the_images(monkeypatch, root, number):
    fill(root / "train/cat/more", "2.png")
    forbid(monkeypatch, "more", number=number)
    train = train_of(root)
    (place,) = [i for i in range(len(train)) if train.label(i).endswith("more")]
    with pytest.raises(UserError, match=f"cat/more: cannot be read: {os.strerror(number)}"):
        train.image(place)
    for source in (train, PictureSource(root / "train")):
        with pytest.raises(UserError, match="/train: 1 entry cannot be read, such as cat/more: .*--skip-bad"):
            refuse_unreadable(source)


def test_a_folder_that_can_be_entered_again_changes_the_digest(monkeypatch, root):
    fill(root / "train/cat/more", "2.png")
    with monkeypatch.context() as patch:
        forbid(patch, "more")
        before = train_of(root).digest()
    assert train_of(root).digest() != before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_class_or_split_that_cannot_be_entered_is_named(monkeypatch, root, number):
    for name in ("dog", "val"):
        with (
            monkeypatch.context() as patch,
            pytest.raises(UserError, match=f"{name}: .*{os.strerror(number)}") as caught,
        ):
            forbid(patch, name, number=number)
            train_of(root)
        assert not isinstance(caught.value, ImagesGone)


def test_a_link_to_nothing_is_named(root, tmp_path):
    (root / "train/cat/9.png").symlink_to(tmp_path / "nothing")
    (root / "train/cat/more").symlink_to(tmp_path / "nothing")
    train = train_of(root)
    assert len(train) == 6
    for i, name in enumerate(("0.png", "1.png", "9.png", "more")):
        assert train.label(i).endswith(name)
    with pytest.raises(UserError, match="more: cannot be read: a broken link"):
        train.image(3)
    (root / "train/cow").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match="train/cow: this class cannot be read: a broken link"):
        train_of(root)


def test_a_link_to_itself_is_named(root):
    (root / "train/cat/more").symlink_to("more")
    with pytest.raises(UserError, match="cat/more: cannot be read: Too many levels"):
        train_of(root).image(2)


def test_images_in_formats_that_are_not_read_are_counted_by_suffix(root):
    for name in ("a.HEIC", "b.heic", "c.avif", "notes.txt"):
        (root / "train/cat" / name).write_text("x")
    note = train_of(root).note
    assert "3 unread images (.heic, .avif: convert to JPEG or PNG), such as cat/a.HEIC" in note
    assert "1 other file (.txt), such as cat/notes.txt" in note


def test_an_empty_class_says_what_is_there_instead(root):
    for name in ("0.png", "1.png"):
        (root / "val/dog" / name).rename(root / "val/dog" / f"{name}.part")
    with pytest.raises(UserError, match=r"val/dog: this class folder has no images .*2 other files: .part"):
        train_of(root)


def test_images_beside_the_class_folders_are_counted(root):
    fill(root / "train", "loose.png")
    assert "left out 1 image that is not in a class folder" in train_of(root).note


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("names", [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)], ids=["nfc-first", "nfd-first"])
def test_one_name_in_two_unicode_forms_is_one_class(root, names):
    for split, name in zip(("train", "val"), names, strict=True):
        fill(root / split / name, "0.png")
    train, val = load_sources(f"folder:{root}", root)
    assert train.classes == val.classes == (names[0], "cat", "dog")
    assert train.target_N.tolist() == [0, 1, 1, 2, 2]
    assert train.note is None


def test_both_forms_in_one_split_are_merged_and_said(root):
    fill(root / "train" / COMPOSED, "0.png")
    fill(root / "train" / DECOMPOSED, "1.png")
    fill(root / "val" / DECOMPOSED, "0.png")
    train, val = load_sources(f"folder:{root}", root)
    assert len(train.classes) == 3
    assert np_counts(train) == [2, 2, 2]
    assert "in two Unicode forms, count as one class" in train.note
    assert np_counts(val) == [1, 2, 2]


def np_counts(source):
    return [source.target_N.tolist().count(k) for k in range(len(source.classes))]


def test_names_that_differ_in_case_are_named_with_the_remedy(root):
    (root / "val/cat").rename(root / "val/Cat")
    with pytest.raises(UserError, match="'cat' and 'Cat' differ in case or spaces: give them one name"):
        train_of(root)
    fill(root / "val/cat", "0.png")
    fill(root / "train/Cat", "0.png")
    assert "'Cat' and 'cat' are different classes: was one meant?" in train_of(root).note


def test_a_class_that_is_a_file_is_named(root):
    fill(root / "train/bird", "0.png")
    (root / "val/bird").write_text("an archive that was never unpacked")
    with pytest.raises(UserError, match="Only in train: bird.*val/bird is a file: put a folder of images there"):
        train_of(root)


def test_a_class_that_is_a_link_to_another_class_is_named(root):
    (root / "train/bird").symlink_to("cat")
    fill(root / "val/bird", "0.png")
    with pytest.raises(UserError, match="Only in train: none; only in val: bird. .*train/bird is a link to a folder"):
        train_of(root)


def test_validation_on_the_training_images_is_said(root):
    shutil.rmtree(root / "val")
    (root / "val").symlink_to("train")
    assert (
        "are the same folder: the validation error says nothing about new images"
        in load_sources(f"folder:{root}", root)[1].note
    )


def test_a_class_whose_name_is_not_utf8_can_be_printed_and_saved(root):
    for split in ("train", "val"):
        folder = os.path.join(os.fsencode(root / split), b"\xff")
        os.mkdir(folder)
        Image.new("RGB", (2, 2)).save(os.path.join(folder, b"0.png"))
    train = train_of(root)
    assert "\\xff" in train.classes
    "".join(train.classes).encode()
    assert all(train.image(i).size == (2, 2) for i in range(len(train)))


@pytest.mark.parametrize("state", ["removed", "not-mounted", "only-what-systems-leave", "splits-empty", "stale"])
def test_images_that_are_gone_are_told_from_mistakes(monkeypatch, tmp_path, state):
    root = tmp_path / "photos"
    if state != "removed":
        root.mkdir()
    if state == "only-what-systems-leave":
        (root / "lost+found").mkdir()
    if state == "splits-empty":
        for split in ("train", "val"):
            (root / split).mkdir()
            (root / split / ".DS_Store").write_text("")
    if state == "stale":
        forbid(monkeypatch, "photos", number=errno.ESTALE)
    with pytest.raises(ImagesGone if state != "stale" else UserError):
        train_of(root)


@pytest.mark.parametrize("mistake", ["val/bird", "train/bird/0.png", "val/dog"])
def test_mistakes_are_no_images_gone(root, mistake):
    if mistake == "val/dog":
        for path in (root / mistake).iterdir():
            path.unlink()
    elif mistake.endswith("png"):
        fill(root / "train/bird", "0.png")
    else:
        (root / mistake).mkdir()
    with pytest.raises(UserError) as caught:
        train_of(root)
    assert not isinstance(caught.value, ImagesGone)


def test_order_is_a_folders_files_and_then_its_folders(tmp_path):
    fill(tmp_path / "b", "z.png", "sub/a.png")
    fill(tmp_path / "a b", "0.png")
    fill(tmp_path, "m.png")
    assert walk(tmp_path).images == ["m.png", "a b/0.png", "b/z.png", "b/sub/a.png"]


def test_many_files_are_walked_quickly(tmp_path):
    for k in range(20):
        (tmp_path / f"{k:02}").mkdir()
        for i in range(500):
            (tmp_path / f"{k:02}" / f"{i}.jpg").touch()
    started = time.process_time()
    assert len(FolderSource(tmp_path, "folder", "train")) == 10_000
    assert time.process_time() - started < 2  # a tenth of a second, and no wait for a busy machine
