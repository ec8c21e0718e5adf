"""Re-identification sets by either loader, as ``.beton`` files, and folders of pictures."""

import shutil

import numpy as np
import pytest
import torch
from batches import KINDS, read
from PIL import Image

from fastdhm.commands import data as commands
from fastdhm.data import DataOptions, open_loaders, open_pictures, open_splits
from fastdhm.data.beton.files import beton_path, read_manifest
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.sources.load import load_splits
from fastdhm.data.sources.people import load_reid, sightings
from fastdhm.data.sources.source import DATASETS, is_reid, split_names
from fastdhm.errors import UserError

OPEN = {"batch_size": 4, "eval_batch_size": 4, "image_size": (32, 16), "crop": "enlarge", "crop_ratio": 1.0, "seed": 0}
SPLIT = {"batch_size": 4, "image_size": (32, 16), "crop": "enlarge"}
PEOPLE = {
    "bounding_box_train": [f"{who:04}_c{cam}s1_{cam:06}_01.jpg" for who in (2, 7, 9) for cam in (1, 2, 3)],
    "query": ["0001_c1s1_001051_00.jpg", "0003_c2s1_001051_00.jpg"],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg",
        "0000_c1s1_000151_01.jpg",
        "0001_c1s1_001076_02.jpg",
        "0001_c2s1_000301_00.jpg",
        "0003_c12s1_000301_00.jpg",
    ],
}


@pytest.fixture
def root(tmp_path):
    """A set in the published layout; every picture has a colour of its own."""
    for k, (folder, names) in enumerate(PEOPLE.items()):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for i, name in enumerate(names):
            Image.new("RGB", (8, 16), (90 * k, 25 * i, 99)).save(tmp_path / "set" / folder / name, quality=95)
    return tmp_path / "set"


def colours(batches):
    return torch.cat([batch.image_BHWC.float().mean((1, 2)) for batch in batches])


@KINDS
def test_query_and_gallery_come_in_order_with_identities_and_cameras(root, tmp_path, kind):
    dataset = f"reid-folder:{root}"
    query, gallery = open_splits(
        dataset, tmp_path, ("query", "gallery"), DataOptions(loader=kind, **SPLIT), say=lambda _: None
    )
    ids_N, cams_N = sightings(gallery.classes, gallery.source.target_N)
    assert ids_N.tolist() == [-1, 0, 1, 1, 3]
    assert cams_N.tolist() == [1, 1, 1, 2, 12]
    assert [part.tolist() for part in sightings(query.classes, query.source.target_N)] == [[1, 3], [1, 2]]
    batches = read(gallery.loader)
    assert [batch.image_BHWC.shape for batch in batches] == [(4, 32, 16, 3), (1, 32, 16, 3)]
    assert torch.cat([batch.index_B for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(torch.cat([batch.target_B for batch in batches]), gallery.source.target_N)
    pictures = [np.asarray(gallery.source.image(i)).mean((0, 1)) for i in range(5)]
    assert np.abs(colours(batches).numpy() - pictures).max() < 1
    for split in (query, gallery):
        split.close()


def test_betons_know_who_is_where_when_the_images_are_gone(ffcv, root, tmp_path):
    def opened():
        said = []
        (split,) = open_splits(
            f"reid-folder:{root}", tmp_path, ["gallery"], DataOptions(loader="ffcv", **SPLIT), say=said.append
        )
        return split, said

    first, _ = opened()
    before = colours(read(first.loader))
    seen = sightings(first.classes, first.source.target_N)
    images = [np.asarray(first.source.image(i)) for i in range(5)]
    shutil.rmtree(root)
    second, said = opened()
    assert "using the .beton files alone" in said[0]
    assert torch.equal(before, colours(read(second.loader)))
    assert all(map(np.array_equal, seen, sightings(second.classes, second.source.target_N)))
    assert all(np.array_equal(image, second.source.image(i)) for i, image in enumerate(images))
    assert second.source.label(3).endswith("/gallery[3]")


@KINDS
def test_bad_pictures_are_left_out_with_their_people(root, tmp_path, kind):
    (root / "bounding_box_test" / "0001_c1s1_001076_02.jpg").write_text("text")
    dataset, said = f"reid-folder:{root}", []
    (gallery,) = open_splits(
        dataset, tmp_path, ["gallery"], DataOptions(loader=kind, skip_bad=True, **SPLIT), say=said.append
    )
    assert sightings(gallery.classes, gallery.source.target_N)[0].tolist() == [-1, 0, 1, 3]
    pictures = [np.asarray(gallery.source.image(i)).mean((0, 1)) for i in range(4)]
    assert np.abs(colours(read(gallery.loader)).numpy() - pictures).max() < 1
    assert any("left out" in line for line in said)


@KINDS
def test_training_takes_every_picture_unless_some_are_held_out(root, tmp_path, kind):
    dataset, said = f"reid-folder:{root}", []
    data = open_loaders(dataset, tmp_path, DataOptions(loader=kind, **OPEN), say=said.append)
    assert data.classes == ("0002", "0007", "0009")
    assert (data.train.num_samples, data.val.num_samples) == (9, 3)
    assert "the 3 validation pictures are training pictures too" in said[-1]
    seen = {tuple(colour) for batch in read(data.val) for colour in batch.image_BHWC[:, 0, 0].tolist()}
    held = open_loaders(
        dataset, tmp_path, DataOptions(loader=kind, hold_out=True, **(OPEN | {"batch_size": 6})), say=said.append
    )
    assert (held.train.num_samples, held.val.num_samples) == (6, 3)
    trained = {tuple(colour) for batch in read(held.train) for colour in batch.image_BHWC[:, 0, 0].tolist()}
    assert len(seen) == 3
    assert len(trained) == 6
    assert not seen & trained


@KINDS
def test_rectangles_that_need_no_resizing_are_the_pictures_themselves(tmp_path, kind):
    (gallery,) = open_splits(
        "reid-synthetic:4",
        tmp_path,
        ["gallery"],
        DataOptions(loader=kind, **(SPLIT | {"image_size": (128, 64)})),
        say=lambda _: None,
    )
    image_NHWC = torch.cat([batch.image_BHWC for batch in read(gallery.loader)]).numpy()
    assert np.array_equal(image_NHWC, gallery.source.pixels(np.arange(len(gallery.source))))


def test_data_commands_cover_every_split(ffcv, tmp_path, capsys):
    settings = ImageSettings.for_dataset("reid-synthetic:4")
    commands.build("reid-synthetic:4", tmp_path, settings)
    commands.verify("reid-synthetic:4", tmp_path, settings)
    data = load_reid("reid-synthetic:4", tmp_path)
    for split, count in (("train", 64), ("val", 4), ("query", len(data.query)), ("gallery", len(data.gallery))):
        assert read_manifest(beton_path(tmp_path, "reid-synthetic:4", split, settings)).count == count
    beton_path(tmp_path, "reid-synthetic:4", "query", settings).unlink()
    capsys.readouterr()
    commands.info("reid-synthetic:4", tmp_path, settings)  # what only evaluation needs may be absent
    printed = capsys.readouterr().out
    assert "gallery" in printed
    assert "query" not in printed
    beton_path(tmp_path, "reid-synthetic:4", "val", settings).unlink()
    with pytest.raises(UserError, match="val.beton is missing"):
        commands.verify("reid-synthetic:4", tmp_path, settings)


def test_names_and_splits():
    assert [name for name in DATASETS if is_reid(name)] == list(DATASETS[-4:])
    assert not is_reid("folder:market1501")
    assert split_names("dukemtmc") == ("train", "val", "query", "gallery")
    assert split_names("cifar100") == ("train", "val")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("market1501", "is not in any of"),
        ("dukemtmc", "withdrawn by its makers"),
        ("reid-folder", "needs a path"),
        ("market-1501", "did you mean 'market1501'"),
        ("reid-synthetic:x", "reid-synthetic:N"),
    ],
)
def test_set_that_is_not_there(tmp_path, dataset, message):
    with pytest.raises(UserError, match=message):
        load_splits(dataset, tmp_path, ["query"])


def test_folder_of_the_layout_is_recognised(root, tmp_path):
    with pytest.raises(UserError, match=f"write 'reid-folder:{root}'"):
        load_splits(str(root), tmp_path, ["train"])


def test_set_with_too_few_pictures_to_hold_any_out_can_be_evaluated(root, tmp_path):
    for path in root.glob("bounding_box_train/*_c1s1*"):
        path.unlink()
    assert len(load_splits(f"reid-folder:{root}", tmp_path, ["gallery"])["gallery"]) == 5
    with pytest.raises(UserError, match="no identity has three training images"):
        load_splits(f"reid-folder:{root}", tmp_path, ["train", "val"])


def test_splits_and_holding_out_where_there_are_none(tmp_path):
    with pytest.raises(UserError, match="unknown split of data set 'synthetic:8' 'query'"):
        open_splits("synthetic:8", tmp_path, ["query"], DataOptions(loader="torch", **SPLIT))
    with pytest.raises(UserError, match="only re-identification sets hold out"):
        open_loaders("synthetic:8", tmp_path, DataOptions(loader="torch", hold_out=True, **OPEN))


def test_only_the_splits_that_are_asked_for_are_built(ffcv, tmp_path):
    (val,) = open_splits("synthetic:64", tmp_path, ["val"], DataOptions(loader="ffcv", **SPLIT), say=lambda _: None)
    assert (len(val.classes), val.loader.num_samples) == (10, 16)
    assert not beton_path(tmp_path, "synthetic:64", "train", ImageSettings()).exists()


def test_pictures_of_any_folder(root, tmp_path):
    shutil.copy(root / "query" / "0001_c1s1_001051_00.jpg", root / "front.jpg")
    (root / "notes.txt").write_text("no picture")
    said = []
    pictures = open_pictures(root, DataOptions(workers=0, **SPLIT), say=said.append)
    names = [pictures.source.label(i) for i in range(len(pictures.source))]
    assert names[0] == "front.jpg"
    assert names[1:] == [f"{folder}/{name}" for folder in sorted(PEOPLE) for name in sorted(PEOPLE[folder])]
    assert sum(len(batch.index_B) for batch in read(pictures.loader)) == 17
    assert "1 other file (.txt)" in said[0]


@pytest.mark.parametrize(("name", "message"), [("absent", "does not exist"), ("empty", "no images here")])
def test_folder_without_pictures(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        open_pictures(tmp_path / name, DataOptions(**SPLIT))
