"""``fastdhm compare``: methods that stand in a file."""

import pytest

from fastdhm.cli import main

FLAGS = ["--dataset", "synthetic:64", "--arch", "resnet8", "--seeds", "2", "--dry-run"]


def test_methods_are_read_from_a_file(tmp_path, capsys):
    path = tmp_path / "méthodes [1].yaml"
    path.write_text("plain: {method: baseline}\nshallow: {method: dhm, branches: [B1], temperature: 2}\n", "utf-8")
    assert main(["compare", "--variants", str(path), *FLAGS]) == 0
    out = capsys.readouterr().out
    assert "plain" in out
    assert "shallow" in out


@pytest.mark.parametrize("text", ["plain: {branches: [B1]}\n", "plain: 3\n", "plain:\n  method: nothing\n"])
def test_a_method_in_a_file_that_is_none_is_refused(tmp_path, capsys, text):
    (tmp_path / "methods.yaml").write_text(text, "utf-8")
    assert main(["compare", "--variants", str(tmp_path / "methods.yaml"), *FLAGS]) == 2
    assert len(capsys.readouterr().err.splitlines()) <= 2
