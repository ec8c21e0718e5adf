"""Files that are whole or not there, and one writer a folder."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fastdhm.errors import UserError
from fastdhm.system import files
from fastdhm.system.files import contents, held, new_folder, plain_name, replacing

HOLD = """
import sys
from pathlib import Path
from fastdhm.system.files import held
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


def refuse(function, number):
    """``function`` as a file system has it that answers with an error."""

    def refused(*_):
        raise OSError(number, os.strerror(number))

    return refused


def save_on_a_full_disk():
    with open("/dev/full", "wb") as file:
        torch.save({"a": torch.zeros(1 << 16)}, file)


def hold(folder):
    with held(folder, "a test", print):
        raise AssertionError("two at once")


def test_two_writers_of_a_file_never_meet(tmp_path):
    path = tmp_path / "x"
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one", "the last to end wins"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("number", files.CANNOT_SYNC, ids=errno.errorcode.get)
def test_a_file_system_that_cannot_sync_is_done_without(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refuse(os.fsync, number))
    with replacing(tmp_path / "x") as path:
        path.write_text("whole")
    assert (tmp_path / "x").read_text() == "whole"


@pytest.mark.parametrize("number", files.REASONS, ids=errno.errorcode.get)
def test_what_cannot_be_written_is_said_and_loses_nothing(tmp_path, monkeypatch, number):
    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(os, "fsync", refuse(os.fsync, number))
    with (
        pytest.raises(UserError, match=f"cannot write .*x: {files.REASONS[number][0]}; "),
        replacing(tmp_path / "x") as path,
    ):
        path.write_text("new")
    assert (tmp_path / "x").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_disk_that_fills_while_torch_saves_is_told_by_its_number(tmp_path):
    with pytest.raises(UserError, match="cannot write .*x.pt: no space left"), replacing(tmp_path / "x.pt"):
        save_on_a_full_disk()


@pytest.mark.parametrize("error", [FileNotFoundError(errno.EACCES, "denied", "/elsewhere/y"), KeyError("x")], ids=repr)
def test_an_error_of_something_else_stays_what_it_was(tmp_path, error):
    with pytest.raises(type(error)), replacing(tmp_path / "x"):
        raise error


def test_a_link_stays_one_and_a_device_a_device(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "x").symlink_to(tmp_path / "disk" / "x")
    with replacing(tmp_path / "x") as path:
        path.write_text("whole")
    assert (tmp_path / "x").is_symlink() and (tmp_path / "disk" / "x").read_text() == "whole"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        with replacing(pipe) as path:
            path.write_text("told")
        assert reader.stdout.read() == "told"
    assert pipe.is_fifo()


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    with pytest.raises(UserError, match="it is a folder"), replacing(tmp_path):
        raise AssertionError("begun for nothing")


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


@pytest.mark.parametrize("number", files.CANNOT_LOCK, ids=errno.errorcode.get)
def test_a_file_system_that_cannot_lock_is_named_once(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "lockf", refuse(fcntl.lockf, number))
    monkeypatch.setattr(files, "_cannot_lock", set())
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


def test_text_is_utf8_whatever_the_locale_and_the_name(tmp_path):
    """A byte of a name that is no character is written as an escape, which JSON reads as what it was."""
    program = (
        "import json, sys\nfrom pathlib import Path\nfrom fastdhm.system.files import write_csv, write_text\n"
        "write_text(Path('x.json'), json.dumps('caf\\xe9 \\udce9', ensure_ascii=False))\n"
        "write_csv(Path('x.csv'), ['a', 'b'], [{'a': 'caf\\xe9 \\udce9'}, (1, 2)])\n"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = {"PYTHONPATH": str(Path(__file__).parents[2])}  # an editable install in `é` is not found in such a locale
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env=os.environ | locale | found)
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == "caf\xe9 \udce9"
    assert (tmp_path / "x.csv").read_bytes().decode() == "a,b\r\ncaf\xe9 \\udce9,\r\n1,2\r\n"


@pytest.mark.parametrize("folder", ["plain", "name\udce9"])
def test_libraries_that_know_no_bytes_read_and_write_under_any_name(tmp_path, folder):
    (tmp_path / folder).mkdir()
    for name in ("x.txt", "caf\udce9.txt"):
        path = tmp_path / folder / name
        with replacing(path) as temporary, plain_name(temporary) as plain:
            plain.encode()
            Path(plain).write_text(name, "utf-8", "surrogateescape")
        with plain_name(path) as plain:
            plain.encode()
            assert Path(plain).read_text("utf-8", "surrogateescape") == name
