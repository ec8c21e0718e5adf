"""fastdhm report: where the page goes, and what is refused. The pages are tested in tests/page."""

import pytest

from fastdhm.cli import main
from fastdhm.config import TrainConfig
from fastdhm.engine.saved.checkpoint import write_config


def test_the_page_goes_into_the_folder_or_where_it_is_told_to(tmp_path, capsys):
    write_config(tmp_path, TrainConfig(run_dir=str(tmp_path)))
    assert main(["report", str(tmp_path)]) == 0
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "report.html").read_text() == (tmp_path / "other.html").read_text()
    assert f"report: {tmp_path / 'other.html'}" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "told"), [("nowhere", "is no folder"), ("", "is not a run of fastdhm")])
def test_what_is_no_run_is_refused(tmp_path, capsys, name, told):
    assert main(["report", str(tmp_path / name)]) == 2
    assert told in capsys.readouterr().err
