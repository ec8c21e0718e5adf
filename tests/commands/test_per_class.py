"""fastdhm eval --per-class: every file, numbers that agree with the errors, and what is refused."""

import csv
import json
import os
import subprocess
import sys

import pytest
from many_processes import LIMIT_S

from fastdhm.cli import main
from fastdhm.commands.per_class import make_writable
from fastdhm.errors import UserError
from runs import command

FILES = {
    "calibration.csv", "calibration.png", "classes.csv", "confused.csv", "confusion.csv", "confusion.png",
    "mistakes.csv", "mistakes.png", "result.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "run"
    assert main(command(run_dir, "--epochs", "1", "--max-steps", "2", "--report", "true")) == 0
    return run_dir


def evaluate(capsys, path, *flags):
    capsys.readouterr()
    assert main(["eval", str(path), "--json", "--workers", "0", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def of_processes(number, *argv):
    """What so many processes of ``fastdhm eval`` print; all goes well."""
    argv = [sys.executable, "-m", "fastdhm", "eval", *map(str, argv), "--processes", str(number)]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(argv, capture_output=True, text=True, env=environ, timeout=LIMIT_S)
    assert ended.returncode == 0 and ended.stderr.count("tables and pictures") == 1, ended.stderr
    return ended.stdout


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_file_is_there_and_agrees_with_the_errors(run_dir, tmp_path, capsys):
    results = evaluate(capsys, run_dir, "--per-class", "--out", str(tmp_path / "deep/out"))
    assert {path.name for path in (tmp_path / "deep/out").iterdir()} == {"B0", "B1", "B2"}
    for branch in ("B0", "B1", "B2"):
        folder = tmp_path / "deep/out" / branch
        assert {path.name for path in folder.iterdir()} == FILES
        rows, error = table(folder / "classes.csv"), results[branch]["top1_error"]
        images = sum(int(row["images"]) for row in rows)
        assert 100 * (1 - sum(int(row["correct"]) for row in rows) / images) == error
        assert len(table(folder / "mistakes.csv")) == round(error * images / 100)
        kept = json.loads((folder / "result.json").read_text())
        assert 100 * kept["calibration_error"] == results[branch]["calibration_error"] and kept["step"] == 2
    assert "calibration_error" not in results["network"], "it is B0"


@pytest.mark.slow
def test_it_is_told_in_short_and_beside_a_network_alone(run_dir, capsys):
    assert main(["eval", str(run_dir / "network.safetensors"), "--per-class", "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "calibration error %" in out and "most often taken for" in out and "mean recall" in out
    assert (run_dir / "per-class/network/confusion.png").exists()


@pytest.mark.slow
def test_several_processes_write_the_bytes_of_one(run_dir, tmp_path):
    """Of 20 images in batches of 8: a short last batch, and a process without any."""
    answers = []
    for number in (1, 2, 4):
        out = tmp_path / f"of{number}"
        printed = of_processes(number, run_dir, "--device", "cpu", "--json", "--per-class", "--out", out)
        tables = {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*.csv"))}
        answers.append((printed, tables, (out / "B0/result.json").read_bytes()))
    assert len(answers[0][1]) == 15 and answers[0] == answers[1] == answers[2]


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_once")
def test_people_are_refused_in_a_sentence(people_run, capsys):
    assert main(["eval", str(people_run), "--per-class"]) == 2
    error = capsys.readouterr().err
    assert "--per-class is for classes" in error and "--per-query" in error and not (people_run / "per-class").exists()


def test_a_folder_without_its_flag_is_refused(tmp_path, capsys):
    assert main(["eval", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "is the folder of --per-class" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "below"], ids=["a file", "below a file"])
def test_a_place_that_cannot_be_is_told_before_the_work(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file|cannot be made"):
        make_writable(tmp_path / "file" / below)
