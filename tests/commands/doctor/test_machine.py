"""What a machine has: what cannot be asked is unknown with the reason, and nothing holds the report."""

import time

from fastdhm.commands.doctor import machine
from fastdhm.commands.doctor.machine import Fact


def test_a_drive_that_does_not_answer_does_not_hold_the_report(monkeypatch):
    monkeypatch.setattr(machine, "PATIENCE_SECONDS", 0.2)
    started = time.monotonic()
    fact = machine.asked("data", lambda: time.sleep(600) or "")
    assert time.monotonic() - started < 120
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
