"""FFCV where it is not, or cannot be imported."""

import torch

from fastdhm.data.loaders import ffcv_library as _ffcv


def test_failed_import_keeps_its_reason_and_torchs_threads(monkeypatch):
    def fail():
        torch.set_num_threads(1)
        raise ImportError("libturbojpeg.so.0: cannot open shared object file")

    before = torch.get_num_threads()
    monkeypatch.setattr(_ffcv, "_parts", fail)
    parts, reason = _ffcv._load.__wrapped__()
    assert parts is None
    assert "libturbojpeg.so.0" in reason
    assert torch.get_num_threads() == before
