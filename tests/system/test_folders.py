"""Folders that one process writes to at a time: who holds one, who is told, and when it is let go."""

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from faults import refuse

from fastdhm.errors import UserError
from fastdhm.system import folders
from fastdhm.system.files import replacing
from fastdhm.system.folders import contents, held, new_folder

HOLD = """
import sys
from pathlib import Path
from fastdhm.system.folders import held
with held(Path(sys.argv[1]), "`fastdhm train`", print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``tmp_path``."""
    program = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def hold(folder):
    with held(folder, "a test", print):
        raise AssertionError("two at once")


def test_the_next_holder_removes_what_a_killed_process_was_writing(tmp_path):
    writing = "import os, sys\nfrom pathlib import Path\nfrom fastdhm.system.files import replacing\n"
    writing += "with replacing(Path(sys.argv[1])) as path:\n    path.write_text('half')\n    os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", writing, tmp_path / "x"]).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1 and not contents(tmp_path)
    with replacing(tmp_path / "y") as ours, held(tmp_path, "a test", print):
        ours.write_text("being written")
    assert contents(tmp_path) == {"y"} and len(list(tmp_path.iterdir())) == 1


def test_the_second_writer_is_told_who_is_at_work(tmp_path, holder):
    for _ in range(2):  # asking must not let go of the other's lock
        with pytest.raises(UserError, match=rf"`fastdhm train` \(process {holder.pid} on .*\) is at work in") as told:
            hold(tmp_path)
        assert "\n" not in str(told.value)


def test_a_killed_holder_lets_go_though_its_children_live_on(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    try:
        with held(tmp_path, "a test", print):
            child.start()
        with held(tmp_path, "a test", print):
            pass
    finally:
        child.kill()
        child.join()


def test_nobody_holds_what_a_killed_process_held(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / ".lock").exists()
    with held(tmp_path, "a test", print):
        assert not contents(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_held_once_within_a_process_too(tmp_path):
    with held(tmp_path / "own", "a test", print):
        with pytest.raises(UserError, match=f"this process .{os.getpid()}. is at work"):
            hold(tmp_path / "own")
        program = [sys.executable, "-c", HOLD, str(tmp_path / "own")]
        other = subprocess.run(program, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert f"a test (process {os.getpid()}" in other.stderr


@pytest.mark.parametrize("number", folders.CANNOT_LOCK, ids=errno.errorcode.get)
def test_a_file_system_that_cannot_lock_is_named_once(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "lockf", refuse(fcntl.lockf, number))
    monkeypatch.setattr(folders, "_cannot_lock", set())
    said = []
    for _ in range(2):
        with held(tmp_path, "a test", said.append):
            (tmp_path / "x").write_text("written")
    assert len(said) == 1 and "cannot lock" in said[0] and str(tmp_path) in said[0]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write in"):
        hold(tmp_path / "file" / "run")


def test_many_that_want_the_same_new_folder_get_one_each(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(new_folder, [tmp_path / "runs" / "run"] * 64))
    assert len(set(folders)) == 64 and all(folder.is_dir() for folder in folders)
    assert tmp_path / "runs" / "run-64" in folders
