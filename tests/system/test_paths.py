"""Paths as people write them, on machines without a home folder too."""

import os
import pwd
from pathlib import Path

import pytest

from fastdhm.cli import main
from fastdhm.config import TrainConfig
from fastdhm.data.beton.files import beton_path
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.engine.settle import settle
from fastdhm.errors import UserError
from fastdhm.system.paths import default_data_dir, expanded, place_caches, shown


@pytest.fixture
def homeless(monkeypatch):
    """A numeric user in a container: no HOME, and no entry in the list of users."""

    def unknown(number):
        raise KeyError(number)

    for name in ("HOME", "USER", "FASTDHM_DATA", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRITON_HOME"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_home_and_variables_are_replaced_and_what_is_there_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "disk")
    assert expanded("~/x") == tmp_path / "x" and expanded("/a/$PLACE/b") == Path("/a/disk/b")
    assert expanded("$NOTHING_SUCH/x") == Path("$NOTHING_SUCH/x")
    (tmp_path / "$PLACE").mkdir()
    assert expanded(tmp_path / "$PLACE") == tmp_path / "$PLACE"


def test_every_path_of_a_run_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = settle(TrainConfig(dataset="folder:~/a", data_dir="~/b", run_dir="~/c", weights="~/d", device="cpu"))
    places = (config.dataset, config.data_dir, config.run_dir, config.weights)
    assert places == (f"folder:{tmp_path}/a", f"{tmp_path}/b", f"{tmp_path}/c", f"{tmp_path}/d")


def test_without_a_home_one_line_says_where_data_can_be_put(homeless, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--data-dir, or set FASTDHM_DATA"):
        default_data_dir()
    assert main(["train", "--dataset", "synthetic:32", "--arch", "resnet8"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="~/x: the home folder is not known"):
        expanded("~/x")


def test_without_a_home_a_data_folder_that_is_given_is_enough(homeless, tmp_path):
    config = TrainConfig(dataset="synthetic:32", data_dir=str(tmp_path), device="cpu")
    assert settle(config).data_dir == str(tmp_path)
    place_caches()
    assert os.environ["USER"].startswith("uid") and not os.environ["XDG_CACHE_HOME"].startswith("~")


def test_a_folder_of_images_may_have_the_longest_name_there_is(tmp_path):
    dataset = f"folder:{tmp_path / ('é' * 127)}"
    config = settle(TrainConfig(dataset=dataset, data_dir=str(tmp_path), device="cpu"))
    names = [Path(config.run_dir).name, beton_path(tmp_path, dataset, "train", ImageSettings()).parent.name]
    assert all(len(os.fsencode(name)) < 200 for name in names)


@pytest.mark.parametrize("to", ["nowhere", "run"], ids=["dangling", "loop"])
def test_a_run_directory_that_is_a_broken_link_is_called_that(tmp_path, capsys, to):
    (tmp_path / "run").symlink_to(to)
    assert main(["train", "--dataset", "synthetic:32", "--arch", "resnet8", "--run-dir", str(tmp_path / "run")]) == 2
    assert "is a broken link: choose another" in capsys.readouterr().err


def test_a_zero_character_in_a_path_is_named():
    with pytest.raises(UserError, match="'a.x00b' contains a null character"):
        settle(TrainConfig(run_dir="a\0b", device="cpu"))


def test_a_file_of_a_run_that_is_given_for_the_run_is_told(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("epochs: 1\n")
    (tmp_path / "last.pt").write_text("")
    assert main(["train", "--resume", str(tmp_path / "last.pt")]) == 2
    assert f"last.pt is a file of a run: name its folder, {tmp_path}" in capsys.readouterr().err


def test_a_current_folder_that_was_removed_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["train", "--dataset", "synthetic:32"]) == 2
    assert capsys.readouterr().err == "fastdhm: error: the current folder was deleted: change to one that exists\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [("a\nb\tc.png", r"a\nb\tc.png"), ("a\x1b[1m.png", r"a\x1b[1m.png"), ("caf\udce9.png", r"caf\xe9.png")],
    ids=["line end and tab", "escape sequence", "no character"],
)
def test_a_name_in_a_message_keeps_to_its_line(name, text):
    assert shown(name) == text
