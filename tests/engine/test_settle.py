"""One writer a run directory, which is made for one run alone."""

import subprocess
import sys

import pytest

from fastdhm.cli import main
from fastdhm.engine.settle import run_folder
from fastdhm.errors import UserError
from fastdhm.system.console import Console
from runs import command

HOLD = """
import sys
from pathlib import Path
from fastdhm.system.folders import held
with held(Path(sys.argv[1]), "`fastdhm train`", print):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_begun_in_the_same_second_get_a_folder_each(tmp_path):
    path = tmp_path / "runs" / "synthetic-resnet8-dhm-20260101-000000"
    with run_folder(path, False, Console()) as one, run_folder(path, False, Console()) as other:
        assert one == path and other == path.with_name(f"{path.name}-2")


def test_a_folder_made_for_a_mistake_is_gone_again(tmp_path):
    for named in (False, True):
        with pytest.raises(UserError), run_folder(tmp_path / "runs" / "a", named, Console()):
            raise UserError("told now")
        assert not list(tmp_path.iterdir())


def test_a_folder_that_was_there_stays(tmp_path):
    with run_folder(tmp_path / "run", True, Console()):
        (tmp_path / "run" / "config.yaml").write_text("")
    with pytest.raises(UserError), run_folder(tmp_path / "run", True, Console()):
        raise UserError("told now")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_second_train_in_a_folder_is_told_who_is_at_work_and_breaks_nothing(tmp_path, capsys):
    assert main(command(tmp_path / "run", "--epochs", "1", "--max-steps", "1")) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    program = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        for second in (command(tmp_path / "run"), ["train", "--resume", str(tmp_path / "run")]):
            assert main(second) == 2
            assert f"`fastdhm train` (process {other.pid} on " in capsys.readouterr().err
        assert main(["eval", str(tmp_path / "run"), "--loader", "torch", "--workers", "0"]) == 0
        other.stdin.close()
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
