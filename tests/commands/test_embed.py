"""fastdhm embed: the features of a folder of pictures as a file, and what is refused."""

import os
import tempfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastdhm import models
from fastdhm.cli import main
from fastdhm.config import TrainConfig
from fastdhm.data.sources.drawn_people import picture
from fastdhm.reid.features import extract_features, load_features

pytestmark = pytest.mark.usefixtures("drawn_once")


@pytest.fixture
def pictures(tmp_path):
    """A folder of three people, two in a folder below, one of them larger than the others."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for name, size in (("a.png", (32, 16)), ("more/b.png", (32, 16)), ("more/c.jpg", (90, 40))):
        picture(len(name), 1, 0, size_HW=size, seed=0).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize("suffix", [".safetensors", ".npy"])
def test_embeddings_are_the_stripped_networks_features(people_run, pictures, tmp_path, suffix, capsys):
    out = tmp_path / f"e{suffix}"
    assert main(["embed", str(people_run), str(pictures), "--out", str(out), "--workers", "0"]) == 0
    assert "3 embeddings of 64 numbers" in capsys.readouterr().out
    embeddings, names = load_features(out)
    assert names == ["a.png", "more/b.png", "more/c.jpg"]
    network = models.build("resnet8", 8, ()).strip()
    network.load_state_dict(load_file(people_run / "network.safetensors"))
    config = TrainConfig()
    images = [np.asarray(Image.open(pictures / name).convert("RGB")) for name in names[:2]]
    image_BCHW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    ready = (image_BCHW - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(config.std).view(3, 1, 1)
    torch.testing.assert_close(embeddings[:2], extract_features(network, [ready], layer="fc"), rtol=1e-4, atol=1e-4)


def test_normalized_and_flip_averaged_embeddings(people_run, pictures, tmp_path):
    found = {}
    for flags in ([], ["--flip-average"], ["--normalize"], ["--batch-size", "2"]):
        out = tmp_path / "e.safetensors"
        argv = ["embed", str(people_run / "last.pt"), str(pictures), "--out", str(out), "--workers", "0"]
        assert main([*argv, *flags]) == 0
        found[" ".join(flags)] = load_features(out)[0]
    plain = found[""]
    torch.testing.assert_close(found["--normalize"], torch.nn.functional.normalize(plain))
    torch.testing.assert_close(found["--batch-size 2"], plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found["--flip-average"], plain, rtol=1e-3)


@pytest.mark.parametrize(
    ("folder", "out", "flags", "message"),
    [
        ("empty", "e.npy", "", "no images here or in the folders below"),
        ("nowhere", "e.npy", "", "does not exist"),
        ("pictures", "e.txt", "", "written as .safetensors or .npy, not '.txt'"),
        ("pictures", "nowhere/e.npy", "", "is no folder"),
        ("pictures", "folder.npy", "", "folder.npy is a folder: name the file"),
        ("pictures", "e.npy", "--batch-size 0", "batch size 0"),
        ("bad", "e.npy", "", "broken.png"),
    ],
    ids=["no-images", "no-folder", "suffix", "out-folder", "out-is-a-folder", "batch", "unreadable"],
)
def test_embeddings_that_cannot_be_made(people_run, pictures, tmp_path, capsys, folder, out, flags, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "folder.npy").mkdir()
    argv = ["embed", str(people_run), str(tmp_path / folder), "--out", str(tmp_path / out), "--workers", "0"]
    assert main([*argv, *flags.split()]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / out).is_file()


def test_embeddings_that_cannot_be_written_after_the_work_are_kept_elsewhere(
    people_run, pictures, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "e.json").mkdir()  # where the names should go
    argv = ["embed", str(people_run), str(pictures), "--out", str(tmp_path / "e.npy"), "--workers", "0"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "e.json: it is a folder" in error and "the embeddings are kept in" in error
    (kept,) = tmp_path.glob("fastdhm-embed-*/e.npy")
    assert len(load_features(kept)[0]) == 3


def test_one_picture_with_a_name_of_odd_bytes_is_embedded(people_run, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    picture(1, 1, 0, size_HW=(32, 16), seed=0).save(folder / "a.png")
    os.rename(folder / "a.png", os.fsencode(folder) + b"/caf\xe9.png")
    assert main(["embed", str(people_run), str(folder), "--out", str(tmp_path / "e.npy"), "--workers", "0"]) == 0
    embeddings, names = load_features(tmp_path / "e.npy")
    assert embeddings.shape == (1, 64) and names == ["caf\\xe9.png"]


def test_unreadable_images_can_be_left_out_of_the_embeddings(people_run, pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"\x89PNG no more")
    argv = ["embed", str(people_run), str(pictures), "--out", str(tmp_path / "e.npy"), "--skip-bad"]
    assert main(argv) == 0
    embeddings, names = load_features(tmp_path / "e.npy")
    assert len(embeddings) == 3 and names == ["a.png", "more/b.png", "more/c.jpg"]
