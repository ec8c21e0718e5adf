"""People to tell apart: the published layout, names, held-out pictures, and sets that no ranking can be made of."""

import pickle

import pytest
from PIL import Image

from fastdhm.data.sources.load import load_splits
from fastdhm.data.sources.people import PUBLISHED, CannotRank, hold_out, load_reid, parse_name
from fastdhm.data.sources.walk import ImagesGone
from fastdhm.errors import UserError

MARKET = {
    "bounding_box_train": [
        "0002_c1s1_000451_03.jpg",
        "0002_c2s1_000776_01.jpg",
        "0002_c3s1_001101_01.jpg",
        "0007_c3s3_077419_03.jpg",
    ],
    "query": ["0001_c1s1_001051_00.jpg"],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg",
        "0000_c1s1_000151_01.jpg",
        "0001_c1s1_001076_02.jpg",
        "0001_c2s1_000301_00.jpg",
    ],
}


def write(root, names_by_folder):
    for folder, names in names_by_folder.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.new("RGB", (8, 16), "red").save(root / folder / name)
    return root


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("0002_c1s1_000451_03.jpg", (2, 1)),
        ("-1_c6s4_000401_03.jpg", (-1, 6)),
        ("0000_c1s1_000151_01.jpg", (0, 1)),
        ("0001_c2_f0046182.jpg", (1, 2)),
        ("1501_c12.PNG", (1501, 12)),
        ("0003_c1_21.png", (3, 1)),
        ("0001_c001_00016450_0.jpg", (1, 1)),
        ("0002_C1S1_000451_03.JPG", (2, 1)),
        ("0000_000_01_0303morning_0008_0.jpg", (0, 1)),
        ("0002_c1s1_000451_03.jpg.jpg", (2, 1)),
        ("123456789012_c7_1.jpg", (123456789012, 7)),
        ("999999999999999999_c1.jpg", (10**18 - 1, 1)),
        ("1000000000000000000_c1.jpg", None),
        ("0000_000_0303morning_0008_0.jpg", None),
        ("0002_s1_000451.jpg", None),
        ("person_c1.jpg", None),
        ("-2_c1s1_1.jpg", None),
        ("0002_cx.jpg", None),
    ],
)
def test_names(name, parsed):
    assert parse_name(name) == parsed


@pytest.mark.parametrize("dataset", ["market1501", "reid-folder"])
def test_folders_of_the_published_layout(tmp_path, dataset):
    root = write(tmp_path / "Market-1501-v15.09.15", MARKET)
    data = load_reid(dataset if dataset == "market1501" else f"reid-folder:{root}", tmp_path)
    assert data.train.target_N.tolist() == [0, 0, 0, 1]
    assert data.train.classes == ("0002", "0007")
    assert data.train.cams_N.tolist() == [1, 2, 3, 3]
    assert data.gallery.ids_N.tolist() == [-1, 0, 1, 1]
    assert data.gallery.label(1).endswith("bounding_box_test/0000_c1s1_000151_01.jpg")
    assert data.query.image(0).size == (8, 16)
    assert pickle.loads(pickle.dumps(data.query)).label(0) == data.query.label(0)
    counts = [note for note in data.notes if "published" in note]
    assert len(counts) == (3 if dataset == "market1501" else 0)
    if counts:
        assert "2 training identities, but 751 were published" in counts[0]
        assert "4 train images, but 12,936 were published" in counts[0]


def test_duke_is_never_downloaded(tmp_path):
    with pytest.raises(UserError, match="withdrawn by its makers"):
        load_reid("dukemtmc", tmp_path)
    assert PUBLISHED["dukemtmc"].images == {"train": 16_522, "query": 2_228, "gallery": 17_661}


def test_other_files_and_junk_in_training_are_said(tmp_path):
    root = write(tmp_path / "set", MARKET | {"bounding_box_train": [*MARKET["bounding_box_train"], "-1_c1s1_1_1.jpg"]})
    (root / "bounding_box_train" / "Thumbs.db").write_text("")
    data = load_reid(f"reid-folder:{root}", tmp_path)
    assert len(data.train) == 4
    assert "1 junk image " in data.train.note
    assert "Thumbs.db" in data.train.note


def test_people_in_folders_of_their_own_are_said(tmp_path):
    root = write(tmp_path / "set", MARKET | {"bounding_box_train/0005": ["0005_c1s1_1_1.jpg"]})
    note = load_reid(f"reid-folder:{root}", tmp_path).train.note
    assert "1 folder in it is ignored, such as 0005" in note
    for path in (root / "bounding_box_train").glob("*.jpg"):
        path.unlink()
    with pytest.raises(UserError, match="no images here; 1 folder in it is ignored, such as 0005. It needs"):
        load_reid(f"reid-folder:{root}", tmp_path)


def test_query_without_match_is_said(tmp_path):
    more = [*MARKET["query"], "0003_c1s1_000001_00.jpg"]
    data = load_reid(f"reid-folder:{write(tmp_path / 'set', MARKET | {'query': more})}", tmp_path)
    assert "1 of 2 queries has no match" in data.query.note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": [f"x{i}.jpg" for i in range(7)]}, "7 of 7 file names.*x0.jpg.*and 2 more"),
        ({"query": []}, "query: no images here"),
        ({"bounding_box_train": ["0001_c1s1_1_1.jpg"]}, "1 identity is in both.*0001"),
    ],
    ids=["names", "empty", "overlap"],
)
def test_sets_that_cannot_be_evaluated_are_refused(tmp_path, change, message):
    root = write(tmp_path / "set", MARKET | change)
    with pytest.raises(UserError, match=message) as caught:
        load_reid(f"reid-folder:{root}", tmp_path)
    assert not isinstance(caught.value, ImagesGone)  # for which files that were built before would be taken


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": MARKET["bounding_box_test"], "bounding_box_test": MARKET["query"]}, "1 query is junk.*Perhaps"),
        ({"query": ["0000_c1s1_1_1.jpg"]}, r"1 query is a distractor \(identity 0\)"),
        ({"query": ["0009_c1s1_1_1.jpg"]}, "none of 1 queries.*Perhaps.*from different data sets"),
        ({"query": ["0009_c1_1.jpg"], "bounding_box_test": ["0009_c1_3.jpg"]}, "all images are from camera 1"),
    ],
    ids=["junk", "distractors", "no-match", "one-camera"],
)
def test_what_no_ranking_can_be_made_of_is_refused_where_it_is_judged_and_may_be_trained_on(tmp_path, change, message):
    root = write(tmp_path / "set", MARKET | change)
    with pytest.raises(CannotRank, match=message):
        load_splits(f"reid-folder:{root}", tmp_path, ("query", "gallery"))
    assert len(load_splits(f"reid-folder:{root}", tmp_path, ("train",))["train"]) == 4


def test_more_queries_than_gallery_are_ranked(tmp_path):
    change = {"query": ["0001_c1_1.jpg", "0001_c1_2.jpg"], "bounding_box_test": ["0001_c2_3.jpg"]}
    data = load_reid(f"reid-folder:{write(tmp_path / 'set', MARKET | change)}", tmp_path)
    assert len(data.query) == 2 and not data.query.note


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("market1501", "bounding_box_train/, query/ and bounding_box_test/"),
        ("reid-folder", "needs a path"),
        ("reid-folder:nowhere", "nowhere does not exist. It needs bounding_box_train"),
        ("reid-synthetic:2", "reid-synthetic:N"),
        ("market1502", "did you mean 'market1501'"),
    ],
)
def test_set_that_is_not_there_is_refused(tmp_path, dataset, message):
    with pytest.raises(UserError, match=message):
        load_reid(dataset, tmp_path)


def test_held_out_pictures_are_one_of_each_identity(tmp_path):
    data = load_reid(f"reid-folder:{write(tmp_path / 'set', MARKET)}", tmp_path)
    train, val = hold_out(data.train)
    assert val.target_N.tolist() == [0]  # identity 0007 has but one picture
    assert val.label(0).endswith("0002_c2s1_000776_01.jpg")
    assert train.target_N.tolist() == [0, 0, 1]
    assert train.classes == val.classes == data.train.classes
    assert len({train.digest(), val.digest(), data.train.digest()}) == 3
