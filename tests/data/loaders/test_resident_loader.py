import subprocess
import sys

import numpy as np
import pytest
import torch
from batches import assert_same, read
from PIL import Image

from fastdhm.data import DataOptions, open_loaders, open_splits
from fastdhm.data.beton import format as beton_format
from fastdhm.data.beton.files import beton_path, build
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.loaders import resident_loader
from fastdhm.data.loaders.build import build_loader
from fastdhm.data.loaders.ffcv_library import why_not
from fastdhm.data.loaders.loader import LoaderOptions
from fastdhm.data.sources import source as sources
from fastdhm.data.sources.arrays import ArraySource
from fastdhm.data.sources.load import load_sources
from fastdhm.data.sources.synthetic import SyntheticSource
from fastdhm.errors import UserError

OPTIONS = {"batch_size": 16, "image_size": 32, "crop": "pad", "shuffle": True, "drop_last": True, "workers": 0}
OPEN = {"batch_size": 8, "eval_batch_size": 5, "image_size": 32, "crop": "pad", "crop_ratio": 1.0, "seed": 0}


def noise(count, height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def array_source(count=50, height=32, width=32, channels=3):
    names = tuple("abcde")
    return ArraySource("array", "train", noise(count, height, width, channels), np.arange(count) % 5, names)


def save_folder(root, height=32, width=32, suffix="png", odd=False):
    for split, count in (("train", 24), ("val", 11)):
        for k, name in enumerate(("a", "b")):
            (root / split / name).mkdir(parents=True)
            for i, image_HWC in enumerate(noise(count, height, width)[k::2]):
                Image.fromarray(image_HWC).save(root / split / name / f"{i:02}.{suffix}")
    if odd:
        Image.fromarray(noise(1, 40, 40)[0]).save(root / "train" / "b" / "odd.png")
    return root


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((32, 32), {}),
        ((32, 32), {"drop_last": False}),
        ((32, 32), {"batch_size": 7, "drop_last": False}),  # the last batch is of one
        ((32, 32), {"crop": "whole"}),
        ((32, 32), {"crop": "shift", "image_size": 28, "crop_ratio": 0.875}),
        ((32, 32), {"crop": "center", "image_size": 28, "crop_ratio": 0.875}),
        ((40, 33), {"crop": "shift", "image_size": 33, "drop_last": False}),
        ((40, 33), {"crop": "pad", "image_size": 33}),
        ((33, 40), {"crop": "center", "image_size": (33, 22), "shuffle": False}),
    ],
    ids=str,
)
def test_the_torch_loader_gives_the_same(size, options, channels):
    source, options = array_source(50, *size, channels), LoaderOptions(**{**OPTIONS, **options})
    ours, theirs = (build_loader(kind, options, source=source) for kind in ("resident", "torch"))
    assert len(ours) == len(theirs)
    for epoch, start_batch in ((0, 0), (3, 0), (3, 2)):
        assert_same(read(ours, epoch, start_batch), read(theirs, epoch, start_batch))
    assert read(ours, 0, len(ours)) == []


def test_ffcv_gives_the_same(ffcv, tmp_path):
    source, path = array_source(), tmp_path / "b" / "train.beton"
    build(source, path, ImageSettings(), workers=1, progress=False)
    options = LoaderOptions(**{**OPTIONS, "crop": "shift", "image_size": 28, "crop_ratio": 0.875})
    ours, theirs = (build_loader(kind, options, source=source, beton=path) for kind in ("resident", "ffcv"))
    assert_same(read(ours, 2), read(theirs, 2))
    theirs.close()


def test_a_folder_of_equal_images_is_held_and_built_once(tmp_path, monkeypatch):
    monkeypatch.setattr(beton_format, "PAGE_BYTES", 10_000)  # three images a page
    root, said = save_folder(tmp_path / "icons"), []
    data = open_loaders(f"folder:{root}", tmp_path, DataOptions(loader="auto", **OPEN), say=said.append)
    torch_data = open_loaders(f"folder:{root}", tmp_path, DataOptions(loader="torch", workers=0, **OPEN))
    assert (data.kind, len(said)) == ("resident", 2)
    assert_same(read(data.train, 1), read(torch_data.train, 1))
    assert_same(read(data.val), read(torch_data.val))
    assert len(read(data.val)[-1].target_B) == 1
    said.clear()
    open_loaders(f"folder:{root}", tmp_path, DataOptions(loader="auto", **OPEN), say=said.append)
    assert said == []


def test_small_jpegs_are_decoded_once_and_not_compressed_again(tmp_path):
    root = save_folder(tmp_path / "icons", suffix="jpg")
    data = open_loaders(f"folder:{root}", tmp_path, DataOptions(loader="resident", **OPEN), say=lambda _: None)
    source, _ = load_sources(f"folder:{root}", tmp_path)
    batch = read(data.train)[0]
    assert np.array_equal(batch.image_BHWC[0].numpy(), np.asarray(source.image(int(batch.index_B[0]))))


def test_a_folder_whose_images_are_gone_is_still_held(tmp_path):
    root = save_folder(tmp_path / "icons")
    first = open_loaders(f"folder:{root}", tmp_path, DataOptions(**OPEN), say=lambda _: None)
    root.rename(tmp_path / "elsewhere")
    second = open_loaders(f"folder:{root}", tmp_path, DataOptions(**OPEN), say=lambda _: None)
    assert second.kind == "resident"
    assert_same(read(first.train), read(second.train))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"crop": "scale"}, "crop 'scale' resizes each image anew"),
        ({"crop": "enlarge"}, "crop 'enlarge' resizes each image anew"),
        ({"image_size": 28}, "of 32 x 32 pixels, they have to be resized to 28 x 28"),
        ({"crop": "shift", "crop_ratio": 0.5}, "of 32 x 32 pixels, they have to be resized to 32 x 32"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_held_is_refused_and_auto_goes_on(tmp_path, changes, reason):
    options = {**OPEN, **changes}
    with pytest.raises(UserError, match=f"loader 'resident' cannot hold the images of synthetic:64: {reason}"):
        open_loaders("synthetic:64", tmp_path, DataOptions(loader="resident", **options))
    data = open_loaders("synthetic:64", tmp_path, DataOptions(loader="auto", **options), say=lambda _: None)
    assert data.kind == ("torch" if why_not() else "ffcv")


def test_one_odd_image_among_many_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PEEKED", 1)
    root = save_folder(tmp_path / "icons", odd=True)
    with pytest.raises(UserError, match="they are not all of one size"):
        open_loaders(f"folder:{root}", tmp_path, DataOptions(loader="resident", **OPEN), say=lambda _: None)
    data = open_loaders(f"folder:{root}", tmp_path, DataOptions(loader="auto", **OPEN), say=lambda _: None)
    assert data.kind == ("torch" if why_not() else "ffcv")
    assert data.train.num_samples == 25


def test_photographs_are_not_built_to_find_out(tmp_path, photo_root):
    with pytest.raises(UserError, match="not all of one size"):
        open_loaders(f"folder:{photo_root}", tmp_path, DataOptions(loader="resident", **OPEN))
    assert not (tmp_path / "beton").exists()


def test_images_stored_as_jpeg_are_not_held(tmp_path):
    root, jpg = save_folder(tmp_path / "icons"), ImageSettings(mode="jpg")
    with pytest.raises(UserError, match="they are stored as JPEG"):
        open_loaders(
            f"folder:{root}", tmp_path, DataOptions(loader="resident", settings=jpg, **OPEN), say=lambda _: None
        )


@pytest.mark.parametrize("loader", ["auto", "resident"])
def test_sets_above_the_limit_are_not_held(tmp_path, monkeypatch, loader):
    needed = 32 * 32 * 3 * (64 + 16)
    monkeypatch.setattr(resident_loader, "COMFORTABLE_BYTES", needed - 1)
    if loader == "auto":
        data = open_loaders("synthetic:64", tmp_path, DataOptions(loader=loader, **OPEN), say=lambda _: None)
        assert data.kind != "resident"
        monkeypatch.setattr(resident_loader, "COMFORTABLE_BYTES", needed)
    data = open_loaders(
        "synthetic:64", tmp_path, DataOptions(loader=loader, **OPEN)
    )  # asked for, only the memory is the limit
    assert data.kind == "resident"
    monkeypatch.setattr(resident_loader, "LARGEST_SHARE", 1e-9)
    with pytest.raises(UserError, match="GiB is the limit"):
        open_loaders("synthetic:64", tmp_path, DataOptions(loader="resident", **OPEN))


def test_bad_images_stop_it_or_are_left_out(bad_root, tmp_path):
    for image in bad_root.rglob("*.*"):
        if image.name not in ("cut.jpg", "text.jpg", "plain.png"):
            image.unlink()
    options = {**OPEN, "image_size": 30, "batch_size": 1}
    with pytest.raises(UserError, match=r"text\.jpg"):
        open_loaders(f"folder:{bad_root}", tmp_path, DataOptions(loader="resident", **options), say=lambda _: None)
    how = DataOptions(loader="resident", skip_bad=True, **options)
    data = open_loaders(f"folder:{bad_root}", tmp_path, how, say=lambda _: None)
    assert (data.train.num_samples, data.val.num_samples) == (2, 2)


def test_a_split_to_judge_on_is_held(tmp_path):
    (val,) = open_splits("synthetic:64", tmp_path, ["val"], DataOptions(batch_size=6, image_size=32, crop="pad"))
    assert (val.kind, [len(batch.target_B) for batch in read(val.loader)]) == ("resident", [6, 6, 4])


def test_drawn_images_are_the_same_in_chunks(monkeypatch):
    monkeypatch.setattr(resident_loader, "CHUNK", 7)
    source = SyntheticSource("train", 20)
    loader = build_loader("resident", LoaderOptions(**{**OPTIONS, "shuffle": False}), source=source)
    assert np.array_equal(read(loader)[0].image_BHWC.numpy(), source.pixels(np.arange(16)))


def test_the_held_images_cannot_be_written_to_through_a_batch():
    source = array_source(10)
    loader = build_loader("resident", LoaderOptions(**{**OPTIONS, "batch_size": 10}), source=source)
    before = read(loader)
    for batch in read(loader):
        batch.image_BHWC.zero_(), batch.target_B.zero_(), batch.index_B.zero_()
    assert_same(before, read(loader))


def test_boxes_of_an_epoch_are_made_at_once(monkeypatch):
    """Each copy to a GPU makes the host wait until its steps are done."""
    made, boxes = [], LoaderOptions.boxes
    monkeypatch.setattr(LoaderOptions, "boxes", lambda self, *args: made.append(len(args[0])) or boxes(self, *args))
    options = LoaderOptions(**{**OPTIONS, "crop": "shift", "image_size": 28, "crop_ratio": 0.875, "batch_size": 8})
    loader = build_loader("resident", options, source=array_source())
    batches = read(loader)
    assert len(batches) > 1 and made == [8 * len(batches)]


def test_nothing_of_ffcv_is_imported(tmp_path):
    program = (
        "import sys; from pathlib import Path; from fastdhm.data import DataOptions, open_loaders\n"
        f"data = open_loaders('synthetic:64', Path({str(tmp_path)!r}), DataOptions(**{OPEN}))\n"
        "assert data.kind == 'resident'\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"ffcv", "numba", "cv2", "torchvision", "matplotlib"} & set(run.stdout.split())


@pytest.mark.gpu
def test_images_and_batches_lie_on_the_gpu(tmp_path):
    data = open_loaders("synthetic:64", tmp_path, DataOptions(device="cuda", **OPEN))
    host = open_loaders("synthetic:64", tmp_path, DataOptions(**OPEN))
    for batch, other in zip(read(data.train), read(host.train), strict=True):
        assert batch.image_BHWC.is_cuda
        assert torch.equal(batch.image_BHWC.cpu(), other.image_BHWC)
        assert torch.equal(batch.target_B.cpu(), other.target_B)


def test_beton_path_of_small_images_says_how_they_are_stored(tmp_path):
    root = save_folder(tmp_path / "icons")
    settings = ImageSettings.for_dataset(f"folder:{root}")
    assert beton_path(tmp_path, f"folder:{root}", "train", settings).parent.name.endswith("smart90-500px")


def test_images_shrunk_in_their_files_are_held(tmp_path):
    root, wish = save_folder(tmp_path / "icons", 64, 64), ImageSettings(max_resolution=32)
    data = open_loaders(f"folder:{root}", tmp_path, DataOptions(settings=wish, **OPEN), say=lambda _: None)
    assert data.kind == "resident"
    shrunk = Image.fromarray(noise(24, 64, 64)[0]).resize((32, 32), Image.Resampling.BOX)
    batches = read(data.train)
    index, image_NHWC = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("index_B", "image_BHWC"))
    assert np.array_equal(image_NHWC[index == 0][0].numpy(), np.asarray(shrunk))


def test_the_torch_loader_refuses_wishes_how_to_store(tmp_path):
    with pytest.raises(UserError, match="the torch loader .* stores no images"):
        open_loaders("synthetic:64", tmp_path, DataOptions(loader="torch", settings=ImageSettings(mode="jpg"), **OPEN))
