"""The report about a machine: what is missing, slow or wrong is said, with what to do; nothing stops it."""

import json
import time

import torch

from fastdhm.cli import main
from fastdhm.commands.doctor import machine, self_test, software
from fastdhm.commands.doctor.machine import Fact


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


def test_an_op_that_is_wrong_here_is_named_with_what_to_do_and_a_status(tmp_path, capsys, monkeypatch):
    def wrong(device, dtype, impl):
        return [torch.ones(3, dtype=dtype) * (1 if impl == "eager" else 2)]

    def broken(device, dtype, impl):
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(self_test, "VALUES", {"conv3x3": wrong, "shortcut": broken})
    monkeypatch.setattr(self_test, "_can_run", lambda op, form: True)
    assert main(["doctor", "--data-dir", str(tmp_path)]) == 1
    page = capsys.readouterr().out
    assert page.count("WRONG") == 4
    assert "illegal instruction" in page
    assert "--impl eager" in page


def test_a_result_that_is_not_a_number_is_wrong():
    check = self_test._check(
        "op", "cpp", torch.float32, lambda device, dtype, impl: [torch.full((2,), torch.nan)], torch.device("cpu")
    )
    assert not check.passed


def test_a_drive_that_does_not_answer_does_not_hold_the_report(monkeypatch):
    monkeypatch.setattr(machine, "PATIENCE_SECONDS", 0.2)
    started = time.monotonic()
    fact = machine.asked("data", lambda: time.sleep(30) or "")
    assert time.monotonic() - started < 10
    assert "no answer" in fact.text
    assert fact.advice


def test_what_cannot_be_asked_is_unknown_with_the_reason():
    def ask():
        raise PermissionError("not for you")

    assert machine.asked("memory", ask) == Fact("memory", "unknown (PermissionError: not for you)")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    file = tmp_path / "a file"
    file.touch()
    fact = machine._folder("data", file / "below")
    assert "cannot be written" in fact.advice
    assert str(file) in fact.advice


def test_a_machine_without_a_compiler_is_told_how_to_get_one(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "apt-get install g++" in software._compiler().advice
