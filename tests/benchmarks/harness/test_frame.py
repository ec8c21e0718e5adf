"""The frame of every benchmark: what it refuses, prints, writes and returns."""

import json
import shutil

import pytest
import torch

from fastdhm.benchmarks.harness import frame
from fastdhm.benchmarks.harness.frame import Frame
from fastdhm.benchmarks.harness.timing import Comparison, Result
from fastdhm.cli import main
from fastdhm.errors import UserError


def comparison(failure=None):
    return Comparison(label="one", results={"ours": Result(samples_ms=[1.0]), "theirs": Result(failure=failure)})


def test_what_is_written_and_printed(tmp_path, capsys):
    told = Frame("mask", rounds=3, out=tmp_path, json=True)
    assert told.conclude([comparison()], settings={"impl": "cpp"}, answer={"speedup": 2.0}) == 0
    output = capsys.readouterr()
    record = json.loads(output.out)
    assert record == json.loads((tmp_path / "mask.json").read_text())
    assert (record["benchmark"], record["speedup"]) == ("mask", 2.0)
    assert record["settings"] == {"impl": "cpp", "device": "cpu", "rounds": 3, "quick": False}
    assert "JSON, CSV and plots are in" in output.err
    assert {path.name for path in tmp_path.iterdir()} == {"mask.json", "mask.csv"}


def test_a_failed_check_is_status_1(tmp_path, capsys):
    told = Frame("mask", out=tmp_path)
    assert told.conclude([comparison()], settings={}) == 0
    assert told.conclude([comparison(), comparison("other bits")], settings={}) == 1
    assert "benchmark" not in capsys.readouterr().out  # JSON only where asked for
    assert "rounds" not in json.loads((tmp_path / "mask.json").read_text())["settings"]


def test_threads_are_those_of_the_flag(tmp_path, capsys):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        told = Frame("mask", threads=1, out=tmp_path)
        assert told.machine["threads"] == 1
        with told.measuring():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert ", 1 used" in capsys.readouterr().out


def test_more_threads_than_processors_are_refused():
    with pytest.raises(UserError, match="--threads is 100000: this process may use"):
        Frame("mask", threads=100_000)


def test_nothing_is_made_before_measuring(tmp_path):
    told = Frame("mask", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with told.measuring():
        assert (tmp_path / "new").is_dir()


def test_a_compiler_is_only_needed_if_requested(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no C++ compiler" in frame.missing_compiler("auto")
    with pytest.raises(UserError, match=r"--compiled is on, but there is no C\+\+ compiler"):
        frame.missing_compiler("on")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/c++")
    assert frame.missing_compiler("on") is None


def test_a_smoke_run_has_defaults_of_its_own(tmp_path, capsys):
    flags = ["--quick", "--arch", "wrn-10-1", "--rounds", "2", "--json", "--device", "cpu", "--precision", "float32"]
    assert main(["bench", "step", *flags, "--method", "baseline", "--out", str(tmp_path)]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["archs"] == ["wrn-10-1"]  # what is given counts
    assert (settings["image_size"], settings["batch_size"], settings["rounds"]) == (16, 8, 2)
