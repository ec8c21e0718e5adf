"""Training on people: the ranking at its end, its frozen phase, and what is refused before it starts."""

import os
import shutil

import pytest
import torch
from people_runs import command, drawn
from PIL import Image
from safetensors.torch import load_file, save_file

from fastdhm import models
from fastdhm.cli import main
from fastdhm.config import TrainConfig
from fastdhm.data.loaders.build import pick_kind
from fastdhm.data.sources import drawn_people
from fastdhm.engine import reid
from fastdhm.engine.run import Run
from fastdhm.engine.saved.checkpoint import load_checkpoint, read_config
from fastdhm.engine.saved.owed import owed
from fastdhm.engine.saved.record import read_log


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_people, "synthetic_reid", drawn)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on 16 people that is long enough to tell 8 others apart."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert main(command(run_dir, "--dataset", "reid-synthetic:16", "--epochs", "6", "--mimic-warmup", "3")) == 0
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
    """Against the same network without its training, which finds the camera and not the person: mAP 8%, rank-1 0%."""
    row = read_log(finished)[-1]
    assert (row["kind"], row["epoch"]) == ("reid", 6)
    untrained, people = tmp_path / "run", ["--dataset", "reid-synthetic:16"]
    assert main(command(untrained, *people, "--lr", "1e-12", "--epochs", "1", "--max-steps", "1")) == 0
    assert "re-identification on reid-synthetic:16 by the stripped network" in capsys.readouterr().out
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
@pytest.mark.usefixtures("compiler")
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
        ("--arch resnet18 --weights imagenet", "no route to host): download https://"),
        ("--weights imagenet", "there are no pre-trained weights for resnet8"),
        ("--weights imagnet", "no such file or run; give one, or imagenet"),
        ("--weights SAME --method baseline --freeze-epochs 1", "all of resnet8, its classifier too"),
        ("--dropout 0.3", "resnet8 has no dropout"),
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
    assert "all images are from camera 9" in capsys.readouterr().out
    assert not owed(run_dir, read_config(run_dir), read_log(run_dir))
    assert main(["eval", str(run_dir), "--workers", "0"]) == 2
    assert "none of 6 queries" in capsys.readouterr().err
