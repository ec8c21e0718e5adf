"""fastdhm eval of runs on people: the run's own numbers, ways to rank, pictures, and what is refused."""

import csv
import json
import math
import re

import pytest
from people_runs import command
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastdhm.cli import main
from fastdhm.commands import evaluate as evaluate_command
from fastdhm.data.sources.drawn_people import picture
from fastdhm.engine.saved.record import read_log
from fastdhm.errors import UserError

pytestmark = pytest.mark.usefixtures("drawn_once")


def evaluate(capsys, path, *flags):
    """The numbers of ``fastdhm eval --json``."""
    capsys.readouterr()
    assert main(["eval", str(path), "--json", "--workers", "0", *flags]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "flags"),
    [("", []), ("last.pt", []), ("network.safetensors", ["--reid"])],
    ids=["run", "checkpoint", "network-asked-for"],
)
def test_eval_gives_the_runs_own_numbers_and_draws_them(people_run, capsys, name, flags):
    for picture_name in ("ranking.png", "cmc.png"):
        (people_run / picture_name).unlink(missing_ok=True)
    result, row = evaluate(capsys, people_run / name, *flags), read_log(people_run)[-1]
    assert {key: result[key] for key in row if key.endswith("percent")} == {
        key: value for key, value in row.items() if key.endswith("percent")
    }
    assert len(result["cmc_percent"]) == 50 and result["cmc_percent"][4] == result["rank5_percent"]
    assert (result["queries"], result["metric"]) == (16, "euclidean")
    assert all(Image.open(people_run / picture_name).width > 500 for picture_name in ("ranking.png", "cmc.png"))


def test_pictures_that_cannot_be_written_are_left_out_and_the_numbers_told(people_run, capsys, monkeypatch):
    def refuse(*_, **__):
        raise UserError("cannot write ranking.png: the file system is read-only")

    monkeypatch.setattr(evaluate_command, "write_pictures", refuse)
    capsys.readouterr()
    assert main(["eval", str(people_run), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["queries"] == 16 and "pictures are left out: cannot write ranking.png" in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--metric", "cosine"], {"metric": "cosine"}),
        (["--flip-average"], {"flip_average": True}),
        (["--rerank"], {"rerank": True}),
    ],
    ids=["cosine", "flip", "rerank"],
)
@pytest.mark.usefixtures("pictures_are_not_drawn")
def test_ways_to_rank_change_the_ranking_and_are_said(people_run, capsys, flags, said):
    result = evaluate(capsys, people_run, *flags)
    assert result["map_percent"] != read_log(people_run)[-1]["map_percent"]
    assert {key: result[key] for key in ("metric", "flip_average", "rerank")} == {
        "metric": "euclidean", "flip_average": False, "rerank": False, **said
    }  # fmt: skip


@pytest.mark.usefixtures("pictures_are_not_drawn")
def test_each_querys_precision_as_csv(people_run, tmp_path, capsys):
    result = evaluate(capsys, people_run, "--per-query", str(tmp_path / "q.csv"))
    with open(tmp_path / "q.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16 and {row["camera"] for row in rows} == set("1234")
    mean = sum(float(row["ap_percent"]) for row in rows) / len(rows)
    assert mean == pytest.approx(result["map_percent"], abs=1e-4)
    first = sum(row["first_match_rank"] == "1" for row in rows) / len(rows)
    assert 100 * first == pytest.approx(result["rank1_percent"])


@pytest.mark.usefixtures("pictures_are_not_drawn")
def test_a_table_is_printed_without_json(people_run, capsys):
    assert main(["eval", str(people_run), "--workers", "0", "--flip-average"]) == 0
    out = capsys.readouterr().out
    assert "mAP %" in out and "16 queries" in out and "flip-averaged" in out and "ranking.png" in out


def broken(network, path, change):
    """A copy of a network file with some of its tensors changed."""
    with safe_open(network, "pt") as file:
        metadata = file.metadata()
    state = load_file(network)
    change(state)
    save_file(state, path, metadata)
    return path


def test_features_that_are_not_finite_are_refused_by_name(people_run, tmp_path, capsys):
    def change(state):
        state["layer3.0.bn2.weight"][3] = math.nan

    path = broken(people_run / "network.safetensors", tmp_path / "n.safetensors", change)
    assert main(["eval", str(path), "--workers", "0"]) == 2
    error = capsys.readouterr().err
    assert "features of 16 of 16 images are NaN or infinite, such as of reid-synthetic/query[0]" in error
    picture(1, 1, 0, size_HW=(32, 16), seed=0).save(tmp_path / "p.png")
    assert main(["embed", str(path), str(tmp_path), "--out", str(tmp_path / "e.npy"), "--workers", "0"]) == 2
    assert "such as of p.png" in capsys.readouterr().err and not (tmp_path / "e.npy").exists()


def test_a_network_file_of_another_architecture_is_refused(people_run, tmp_path, capsys):
    def change(state):
        state["layer3.1.conv1.weight"] = state["layer3.0.conv2.weight"].clone()

    path = broken(people_run / "network.safetensors", tmp_path / "n.safetensors", change)
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
def test_a_mistake_is_found_before_the_work(people_run, capsys, flags, message):
    assert main(["eval", str(people_run), *flags.split()]) == 2
    assert message in capsys.readouterr().err
