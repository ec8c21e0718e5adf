"""A run on people, for the commands that read one."""

import pytest
from figures import undrawn
from people_runs import command, drawn

from fastdhm.cli import main
from fastdhm.data.sources import drawn_people
from fastdhm.reid import pictures


@pytest.fixture(scope="session")
def people_run(tmp_path_factory):
    """A short one, whose network tells little apart; it is read, and pictures are drawn beside it."""
    run_dir = tmp_path_factory.mktemp("people") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_people, "synthetic_reid", drawn)
        assert main(command(run_dir, "--epochs", "2")) == 0
    return run_dir


@pytest.fixture
def drawn_once(monkeypatch):
    monkeypatch.setattr(drawn_people, "synthetic_reid", drawn)


@pytest.fixture
def pictures_are_not_drawn(monkeypatch):
    monkeypatch.setattr(pictures, "save_figure", undrawn)
