"""Files that are either whole or absent, and what is said where one cannot be written."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults import refuse

from fastdhm.errors import UserError
from fastdhm.system import files
from fastdhm.system.files import plain_name, replacing, write_text


def save_on_a_full_disk():
    with open("/dev/full", "wb") as file:
        torch.save({"a": torch.zeros(1 << 16)}, file)


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


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*no/x: there is no folder .*no; make it first"):
        write_text(tmp_path / "no" / "x", "whole")


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
