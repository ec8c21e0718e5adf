"""The ops are tried on the machine, and a wrong one is named with what to do."""

import torch

from fastdhm.cli import main
from fastdhm.commands.doctor import self_test


def test_an_op_that_is_wrong_here_is_named_with_what_to_do_and_a_status(tmp_path, capsys, monkeypatch):
    def wrong(device, dtype, impl):
        return [torch.ones(3, dtype=dtype) * (1 if impl == "eager" else 2)]

    def broken(device, dtype, impl):
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(self_test, "VALUES", {"conv3x3": wrong, "shortcut": broken})
    monkeypatch.setattr(self_test, "_can_run", lambda op, form: True)
    assert main(["doctor", "--data-dir", str(tmp_path)]) == 1
    page = capsys.readouterr().out
    assert page.count("WRONG") == 4
    assert "illegal instruction" in page
    assert "--impl eager" in page


def test_a_result_that_is_not_a_number_is_wrong():
    check = self_test._check(
        "op", "cpp", torch.float32, lambda device, dtype, impl: [torch.full((2,), torch.nan)], torch.device("cpu")
    )
    assert not check.passed
