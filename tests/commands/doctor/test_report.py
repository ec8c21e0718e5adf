"""The report about a machine: one page, for a person or a program."""

import json

import torch

from fastdhm.cli import main


def test_one_page_says_what_the_machine_has_and_that_its_ops_are_right(tmp_path, capsys):
    assert main(["doctor", "--data-dir", str(tmp_path / "my [data] é")]) == 0
    page = capsys.readouterr().out
    assert "WRONG" not in page
    assert "my [data] é" in page
    assert f"torch {torch.__version__.partition('+')[0]}" in page
    assert all(word in page for word in ("processors", "/dev/shm", "GPU", "FFCV", "C++ compiler", "precision"))


def test_the_page_can_be_read_by_a_program(tmp_path, capsys):
    assert main(["doctor", "--json", "--data-dir", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"machine", "software", "folders", "a run takes", "self-test"} < report.keys()
    assert all({"name", "text", "advice"} == fact.keys() for fact in report["machine"])
