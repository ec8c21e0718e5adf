"""Re-identification from the command line: training, its frozen phase, evaluation, embeddings."""

import csv
import functools
import json
import math
import os
import re
import shutil
import tempfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastdhm import models
from fastdhm.cli import main
from fastdhm.commands import evaluate as evaluate_command
from fastdhm.config import TrainConfig
from fastdhm.data.loaders.build import pick_kind
from fastdhm.data.sources import drawn_people as reid_synthetic
from fastdhm.data.sources.drawn_people import picture
from fastdhm.engine import reid
from fastdhm.engine.run import Run
from fastdhm.engine.saved.checkpoint import load_checkpoint, read_config
from fastdhm.engine.saved.owed import owed
from fastdhm.engine.saved.record import read_log
from fastdhm.errors import UserError
from fastdhm.reid.features import extract_features, load_features

# 8 people to train on in 128 images, 4 batches an epoch; 4 others to tell apart. Too few to learn anything general.
FLAGS = "--dataset reid-synthetic:8 --image-size [32,16] --device cpu --precision float32 --compile off"


def command(run_dir, *flags):
    folders = ["--run-dir", str(run_dir), "--data-dir", str(run_dir.parent / "data")]
    return ["train", *FLAGS.split(), "--loader", "torch", "--workers", "0", *folders, *flags]


def evaluate(capsys, path, *flags):
    """The numbers of ``fastdhm eval --json``."""
    capsys.readouterr()
    assert main(["eval", str(path), "--json", "--workers", "0", *flags]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """People are the same at every call, and drawing them takes most of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reid_synthetic, "synthetic_reid", functools.cache(reid_synthetic.synthetic_reid))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on 24 people that is long enough to tell 12 others apart."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert main(command(run_dir, "--dataset", "reid-synthetic:24", "--epochs", "8", "--mimic-warmup", "3")) == 0
    return run_dir


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A ResNet-8 for five other classes."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("pretrained") / "trunk.safetensors"
    trunk = models.build("resnet8", 5, ()).strip()
    trunk(torch.randn(8, 3, 16, 16))  # statistics that are not what a new network begins with
    save_file(trunk.state_dict(), path)
    return path


def test_training_ends_with_the_stripped_networks_ranking_and_it_has_learnt(finished, tmp_path, capsys):
    """Against the same network without its training, which finds the camera and not the person: mAP 6%, rank-1 0%."""
    row = read_log(finished)[-1]
    assert (row["kind"], row["epoch"]) == ("reid", 8)
    untrained, people = tmp_path / "run", ["--dataset", "reid-synthetic:24"]
    assert main(command(untrained, *people, "--lr", "1e-12", "--epochs", "1", "--max-steps", "1")) == 0
    assert "re-identification on reid-synthetic:24 by the stripped network" in capsys.readouterr().out
    before = read_log(untrained)[-1]
    assert row["map_percent"] > before["map_percent"] + 20 and row["rank1_percent"] > before["rank1_percent"] + 25


def test_resuming_a_finished_run_ranks_nothing_again(finished):
    before = (finished / "log.jsonl").read_text()
    assert main(["train", "--resume", str(finished)]) == 0
    assert (finished / "log.jsonl").read_text() == before


def test_a_run_interrupted_while_it_ranks_is_not_finished_and_a_resume_ranks(finished, tmp_path, capsys, monkeypatch):
    """The signal comes with the first batch of the queries: everything but the ranking is there."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    whole = (run_dir / "log.jsonl").read_text()
    (run_dir / "log.jsonl").write_text("".join(whole.splitlines(keepends=True)[:-1]))
    config = read_config(run_dir)
    assert owed(run_dir, config, read_log(run_dir)) == ["the ranking of people"]
    with monkeypatch.context() as patch:
        patch.setattr(reid, "extract_features", lambda network, images, **_: [os.kill(os.getpid(), 15), list(images)])
        assert main(["train", "--resume", str(run_dir)]) == 128 + 15
    assert f"fastdhm train --resume {run_dir}" in capsys.readouterr().out
    assert owed(run_dir, config, read_log(run_dir)) == ["the ranking of people"]
    assert main(["train", "--resume", str(run_dir)]) == 0
    assert (run_dir / "log.jsonl").read_text() == whole and not owed(run_dir, config, read_log(run_dir))


@pytest.mark.parametrize(
    ("name", "flags"),
    [("", []), ("last.pt", []), ("network.safetensors", ["--reid"])],
    ids=["run", "checkpoint", "network-asked-for"],
)
def test_eval_gives_the_runs_own_numbers_and_draws_them(finished, capsys, name, flags):
    for picture_name in ("ranking.png", "cmc.png"):
        (finished / picture_name).unlink(missing_ok=True)
    result, row = evaluate(capsys, finished / name, *flags), read_log(finished)[-1]
    assert {key: result[key] for key in row if key.endswith("percent")} == {
        key: value for key, value in row.items() if key.endswith("percent")
    }
    assert len(result["cmc_percent"]) == 50 and result["cmc_percent"][4] == result["rank5_percent"]
    assert (result["queries"], result["metric"]) == (48, "euclidean")
    assert all(Image.open(finished / picture_name).width > 500 for picture_name in ("ranking.png", "cmc.png"))


def test_pictures_that_cannot_be_written_are_left_out_and_the_numbers_told(finished, capsys, monkeypatch):
    def refuse(*_, **__):
        raise UserError("cannot write ranking.png: the file system is read-only")

    monkeypatch.setattr(evaluate_command, "write_pictures", refuse)
    capsys.readouterr()
    assert main(["eval", str(finished), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["queries"] == 48 and "pictures are left out: cannot write ranking.png" in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--metric", "cosine"], {"metric": "cosine"}),
        (["--flip-average"], {"flip_average": True}),
        (["--rerank"], {"rerank": True}),
    ],
    ids=["cosine", "flip", "rerank"],
)
def test_ways_to_rank_change_the_ranking_and_are_said(finished, capsys, flags, said):
    plain, result = evaluate(capsys, finished), evaluate(capsys, finished, *flags)
    assert result["map_percent"] != plain["map_percent"]
    assert {key: result[key] for key in ("metric", "flip_average", "rerank")} == {
        "metric": "euclidean", "flip_average": False, "rerank": False, **said
    }  # fmt: skip


def test_each_querys_precision_as_csv(finished, tmp_path, capsys):
    result = evaluate(capsys, finished, "--per-query", str(tmp_path / "q.csv"))
    with open(tmp_path / "q.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48 and {row["camera"] for row in rows} == set("1234")
    mean = sum(float(row["ap_percent"]) for row in rows) / len(rows)
    assert mean == pytest.approx(result["map_percent"], abs=1e-4)
    first = sum(row["first_match_rank"] == "1" for row in rows) / len(rows)
    assert 100 * first == pytest.approx(result["rank1_percent"])


def test_a_table_is_printed_without_json(finished, capsys):
    assert main(["eval", str(finished), "--workers", "0", "--flip-average"]) == 0
    out = capsys.readouterr().out
    assert "mAP %" in out and "48 queries" in out and "flip-averaged" in out and "ranking.png" in out


FROZEN = ["--freeze-epochs", "1", "--epochs", "2"]


def test_the_frozen_phase_freezes_weights_and_statistics_and_nothing_else(pretrained, tmp_path):
    """The paper's: new layers alone at first, then all."""
    assert main(command(tmp_path / "run", *FROZEN, "--weights", str(pretrained), "--max-steps", "4")) == 0
    loaded = {f"trunk.{n}": t for n, t in load_file(pretrained).items() if not n.startswith("fc.")}
    config = TrainConfig(arch="resnet8", device="cpu", branches=None)
    begun = Run(config, tmp_path, tuple(map(str, range(8)))).model.state_dict() | loaded
    after = load_checkpoint(tmp_path / "run" / "last.pt")
    assert after["position"]["epoch"] == 1
    assert {name for name, tensor in after["model"].items() if torch.equal(tensor, begun[name])} == set(loaded)
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    thawed = load_checkpoint(tmp_path / "run" / "last.pt")["model"]
    assert not [name for name, tensor in thawed.items() if torch.equal(tensor, after["model"][name])]


@pytest.fixture(scope="module")
def thawed(pretrained, tmp_path_factory):
    """A whole run with a frozen phase."""
    run_dir = tmp_path_factory.mktemp("thawed") / "run"
    assert main(command(run_dir, *FROZEN, "--weights", str(pretrained))) == 0
    return run_dir


def assert_same_state(one, other):
    a, b = (load_checkpoint(run_dir / "last.pt") for run_dir in (one, other))
    for part in ("model", "optimizer", "rng", "sums"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0, equal_nan=True)
    assert (a["position"], a["pretrained"]) == (b["position"], b["pretrained"])


@pytest.mark.parametrize("steps", [2, 4, 6], ids=["frozen", "at-the-thaw", "thawed"])
def test_a_frozen_run_resumes_bit_for_bit_and_without_the_file_of_weights(pretrained, thawed, tmp_path, steps):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(pretrained.read_bytes())
    assert main(command(tmp_path / "cut", *FROZEN, "--weights", str(weights), "--max-steps", str(steps))) == 0
    weights.unlink()
    assert main(["train", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_state(tmp_path / "cut", thawed)


def test_the_frozen_phase_with_sgd_resumes_bit_for_bit(pretrained, tmp_path):
    flags = [*FROZEN, "--weights", str(pretrained), "--optimizer", "sgd"]
    assert main(command(tmp_path / "whole", *flags)) == 0
    assert main(command(tmp_path / "cut", *flags, "--max-steps", "3")) == 0
    assert main(["train", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_state(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
def test_a_compiled_run_thaws_as_the_eager_one(pretrained, tmp_path):
    losses = {}
    for compiled in ("off", "on"):
        flags = [*FROZEN, "--weights", str(pretrained), "--log-every", "1", "--compile", compiled]
        assert main(command(tmp_path / compiled, *flags, "--max-steps", "6")) == 0
        losses[compiled] = [row["loss"] for row in read_log(tmp_path / compiled) if row["kind"] == "step"]
    assert losses["on"] == pytest.approx(losses["off"], rel=2e-3)


def no_network(*_, **__):
    raise OSError("no route to host")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--freeze-epochs 1", "freeze_epochs is 1: must be 0 without weights: nothing is pre-trained"),
        ("--arch resnet14 --weights FILE", "weights of another network than resnet14"),
        ("--arch resnet18 --weights imagenet", "no route to host). Download https://"),
        ("--weights imagenet", "no pre-trained weights are known for resnet8"),
        ("--weights imagnet", "no such file; give one, or imagenet"),
        ("--weights SAME --method baseline --freeze-epochs 1", "all of resnet8, its classifier too"),
        ("--dropout 0.3", "resnet8 has none"),
    ],
    ids=["nothing-to-freeze", "another-arch", "no-network", "none-known", "typo", "nothing-new", "no-dropout"],
)
def test_a_start_that_makes_no_sense_is_refused_before_anything_is_written(
    pretrained, tmp_path, capsys, monkeypatch, flags, message
):
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    same = tmp_path / "same.safetensors"
    save_file(models.build("resnet8", 8, ()).strip().state_dict(), same)
    flags = flags.replace("FILE", str(pretrained)).replace("SAME", str(same))
    assert main(command(tmp_path / "run", *flags.split())) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def broken(network, path, change):
    """A copy of a network file with some of its tensors changed."""
    with safe_open(network, "pt") as file:
        metadata = file.metadata()
    state = load_file(network)
    change(state)
    save_file(state, path, metadata)
    return path


def test_features_that_are_not_finite_are_refused_by_name(finished, tmp_path, capsys):
    def change(state):
        state["layer3.0.bn2.weight"][3] = math.nan

    path = broken(finished / "network.safetensors", tmp_path / "n.safetensors", change)
    assert main(["eval", str(path), "--workers", "0"]) == 2
    error = capsys.readouterr().err
    assert "features of 48 of 48 images are NaN or infinite, such as of reid-synthetic/query[0]" in error
    picture(1, 1, 0, size_HW=(32, 16), seed=0).save(tmp_path / "p.png")
    assert main(["embed", str(path), str(tmp_path), "--out", str(tmp_path / "e.npy"), "--workers", "0"]) == 2
    assert "such as of p.png" in capsys.readouterr().err and not (tmp_path / "e.npy").exists()


def test_a_network_file_of_another_architecture_is_refused(finished, tmp_path, capsys):
    def change(state):
        state["layer3.1.conv1.weight"] = state["layer3.0.conv2.weight"].clone()

    path = broken(finished / "network.safetensors", tmp_path / "n.safetensors", change)
    assert main(["eval", str(path)]) == 2
    assert "another network than resnet8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--reid", "--reid is for re-identification, and .* was trained on synthetic:64: needs a run on market1501"),
        ("--rerank", "--rerank is for"),
        ("--metric cosine", "--metric is for"),
        ("--flip-average", "--flip-average is for"),
        ("--per-query q.csv", "--per-query is for"),
    ],
    ids=lambda value: value.split()[0] if value.startswith("--") else "",
)
def test_ranking_what_is_no_reid_run_is_refused(plain_run, capsys, flags, message):
    assert main(["eval", str(plain_run), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    flags = ["--dataset", "synthetic:64", "--image-size", "32", "--crop", "pad", "--epochs", "1", "--max-steps", "1"]
    assert main(command(run_dir, *flags)) == 0
    return run_dir


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--metric cosin", "did you mean 'cosine'"),
        ("--per-query /nowhere/q.csv", "/nowhere is no folder"),
        ("--per-query /", "is a folder"),
    ],
    ids=["metric", "folder", "no file"],
)
def test_a_mistake_is_found_before_the_work(finished, capsys, flags, message):
    assert main(["eval", str(finished), *flags.split()]) == 2
    assert message in capsys.readouterr().err


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
def test_embeddings_are_the_stripped_networks_features(finished, pictures, tmp_path, suffix, capsys):
    out = tmp_path / f"e{suffix}"
    assert main(["embed", str(finished), str(pictures), "--out", str(out), "--workers", "0"]) == 0
    assert "3 embeddings of 64 numbers" in capsys.readouterr().out
    embeddings, names = load_features(out)
    assert names == ["a.png", "more/b.png", "more/c.jpg"]
    network = models.build("resnet8", 24, ()).strip()
    network.load_state_dict(load_file(finished / "network.safetensors"))
    config = TrainConfig()
    images = [np.asarray(Image.open(pictures / name).convert("RGB")) for name in names[:2]]
    image_BCHW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    ready = (image_BCHW - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(config.std).view(3, 1, 1)
    torch.testing.assert_close(embeddings[:2], extract_features(network, [ready], layer="fc"), rtol=1e-4, atol=1e-4)


def test_normalized_and_flip_averaged_embeddings(finished, pictures, tmp_path):
    found = {}
    for flags in ([], ["--flip-average"], ["--normalize"], ["--batch-size", "2"]):
        out = tmp_path / "e.safetensors"
        argv = ["embed", str(finished / "last.pt"), str(pictures), "--out", str(out), "--workers", "0"]
        assert main([*argv, *flags]) == 0
        found[" ".join(flags)] = load_features(out)[0]
    plain = found[""]
    torch.testing.assert_close(found["--normalize"], torch.nn.functional.normalize(plain))
    torch.testing.assert_close(found["--batch-size 2"], plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found["--flip-average"], plain, rtol=1e-3)


@pytest.mark.parametrize(
    ("folder", "out", "flags", "message"),
    [
        ("empty", "e.npy", "", "no image here or in the folders below"),
        ("nowhere", "e.npy", "", "does not exist"),
        ("pictures", "e.txt", "", "written as .safetensors or .npy, not '.txt'"),
        ("pictures", "nowhere/e.npy", "", "is no folder"),
        ("pictures", "folder.npy", "", "folder.npy is a folder: name the file"),
        ("pictures", "e.npy", "--batch-size 0", "batch size 0"),
        ("bad", "e.npy", "", "broken.png"),
    ],
    ids=["no-images", "no-folder", "suffix", "out-folder", "out-is-a-folder", "batch", "unreadable"],
)
def test_embeddings_that_cannot_be_made(finished, pictures, tmp_path, capsys, folder, out, flags, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "folder.npy").mkdir()
    argv = ["embed", str(finished), str(tmp_path / folder), "--out", str(tmp_path / out), "--workers", "0"]
    assert main([*argv, *flags.split()]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / out).is_file()


def test_embeddings_that_cannot_be_written_after_the_work_are_kept_elsewhere(
    finished, pictures, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "e.json").mkdir()  # where the names should go
    argv = ["embed", str(finished), str(pictures), "--out", str(tmp_path / "e.npy"), "--workers", "0"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "e.json: it is a folder" in error and "the embeddings are kept in" in error
    (kept,) = tmp_path.glob("fastdhm-embed-*/e.npy")
    assert len(load_features(kept)[0]) == 3


def test_one_picture_with_a_name_of_odd_bytes_is_embedded(finished, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    picture(1, 1, 0, size_HW=(32, 16), seed=0).save(folder / "a.png")
    os.rename(folder / "a.png", os.fsencode(folder) + b"/caf\xe9.png")
    assert main(["embed", str(finished), str(folder), "--out", str(tmp_path / "e.npy"), "--workers", "0"]) == 0
    embeddings, names = load_features(tmp_path / "e.npy")
    assert embeddings.shape == (1, 64) and names == ["caf\\xe9.png"]


def test_unreadable_images_can_be_left_out_of_the_embeddings(finished, pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"\x89PNG no more")
    argv = ["embed", str(finished), str(pictures), "--out", str(tmp_path / "e.npy"), "--skip-bad"]
    assert main(argv) == 0
    embeddings, names = load_features(tmp_path / "e.npy")
    assert len(embeddings) == 3 and names == ["a.png", "more/b.png", "more/c.jpg"]


@pytest.mark.skipif(pick_kind("auto")[0] != "ffcv", reason="FFCV is not installed; torch's loader reads files when due")
def test_a_bad_query_is_found_before_the_training(tmp_path, capsys):
    root = tmp_path / "set"
    for folder, people in {"bounding_box_train": (2, 3), "bounding_box_test": (4, 5), "query": (4, 5)}.items():
        (root / folder).mkdir(parents=True)
        for identity in people:
            for camera in (1, 2):
                name = f"{identity:04}_c{camera}s1_000001_00.jpg"
                Image.new("RGB", (16, 32), (50 * identity, 90 * camera, 0)).save(root / folder / name)
    (root / "query" / "0005_c1s1_000001_00.jpg").write_bytes(b"no image")
    flags = ["--dataset", f"reid-folder:{root}", "--loader", "ffcv", "--workers", "1", "--batch-size", "4"]
    flags += ["--arch", "resnet8", "--weights", "null", "--freeze-epochs", "0"]
    assert main(command(tmp_path / "run", *flags)) == 2
    assert "0005_c1s1_000001_00.jpg" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_people_of_one_camera_are_trained_on_and_not_ranked(tmp_path, capsys):
    root = tmp_path / "set"
    for folder, people in {"bounding_box_train": (2, 3), "bounding_box_test": (4, 5), "query": (4, 5)}.items():
        (root / folder).mkdir(parents=True)
        for identity in people:
            for i in range(3):
                name = f"{identity:012}_c9s1_{i:06}_00.jpg"
                Image.new("RGB", (16, 32), (50 * identity, 90 * i, 0)).save(root / folder / name)
    flags = ["--dataset", f"reid-folder:{root}", "--batch-size", "4", "--epochs", "1", "--weights", "null"]
    run_dir = tmp_path / "run"
    assert main(command(run_dir, *flags, "--arch", "resnet8", "--freeze-epochs", "0")) == 0
    assert "all pictures are of camera 9" in capsys.readouterr().out
    assert not owed(run_dir, read_config(run_dir), read_log(run_dir))
    assert main(["eval", str(run_dir), "--workers", "0"]) == 2
    assert "not one of 6 queries" in capsys.readouterr().err
