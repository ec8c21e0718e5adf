"""``fastdhm data``: what is given on the command line reaches the building, verifying and describing of a data set."""

import pytest

from fastdhm.cli import main
from fastdhm.data.loaders.ffcv_library import why_not


@pytest.mark.skipif(why_not() is not None, reason=f"{why_not()}")
def test_a_data_set_is_built_once_verified_and_described(tmp_path, capsys):
    flags = ["--dataset", "synthetic:64", "--data-dir", str(tmp_path)]
    assert main(["data", "build", *flags, "--workers", "1"]) == 0
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.beton")}
    assert {path.name for path in files} == {"train.beton", "val.beton"}
    assert main(["data", "build", *flags]) == 0  # what is whole stays
    assert {path: path.stat().st_mtime_ns for path in files} == files
    capsys.readouterr()
    assert main(["data", "info", *flags]) == 0
    assert "64" in capsys.readouterr().out
    assert main(["data", "verify", *flags]) == 0
    path = min(files)
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["data", "verify", *flags]) == 2
    assert path.name in capsys.readouterr().err


def test_other_settings_are_another_data_set(tmp_path, capsys):
    assert main(["data", "verify", "--dataset", "synthetic:64", "--data-dir", str(tmp_path), "--store", "jpg"]) == 2
    assert "jpg90" in capsys.readouterr().err
