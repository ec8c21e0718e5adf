"""Loading the extension: what it reports, and what is said where it is missing or belongs to another torch."""

import subprocess
import sys
import types

import pytest
import torch

from fastdhm.ops import _extension

needs_cpp = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))


class OtherAbi:
    """An import hook: fastdhm._C is there and refers to symbols that this torch does not have."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "fastdhm._C":
            raise ImportError("undefined symbol: _ZN3c105Error")


def missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastdhm._C", None)


def other_abi(monkeypatch):
    monkeypatch.delitem(sys.modules, "fastdhm._C", raising=False)
    monkeypatch.setattr(sys, "meta_path", [OtherAbi, *sys.meta_path])


def other_torch(monkeypatch):
    module = types.SimpleNamespace(build_info=lambda: {"torch": "1.2.3"})
    monkeypatch.setitem(sys.modules, "fastdhm._C", module)


def stale(monkeypatch):
    monkeypatch.setattr(_extension, "OPS", (*_extension.OPS, "newest"))


@pytest.mark.parametrize(
    ("arrange", "words"),
    [
        pytest.param(stale, "was built from older sources without newest", marks=needs_cpp),
        (missing, "was not built"),
        (other_abi, "it was probably built for another torch (undefined symbol"),
        (other_torch, "was built for torch 1.2.3, this is torch"),
    ],
    ids=["stale", "missing", "other-abi", "other-torch"],
)
def test_it_says_why_it_cannot_be_used(monkeypatch, arrange, words):
    arrange(monkeypatch)
    module, reason = _extension._load()
    assert module is None
    assert words in reason
    assert "pip install --no-build-isolation ." in reason


WITHOUT = """
import sys

sys.modules["fastdhm._C"] = None
import torch
from fastdhm.ops.branch_mask import branch_mask

probs_S = torch.full((3,), 0.5)
assert torch.equal(branch_mask(probs_S, 1, 2), branch_mask(probs_S, 1, 2, impl="eager"))
try:
    branch_mask(probs_S, 1, 2, impl="cpp")
except ValueError as error:
    print(error)
"""


def test_without_it_auto_works_and_cpp_says_why():
    result = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert result.stdout.startswith(
        "branch_mask with impl='cpp' needs the C++ extension: the C++ extension was not built"
    )


@needs_cpp
def test_it_reports_how_it_was_built():
    info = _extension.require("this test").build_info()
    assert info["compiler"]
    assert info["cxx_standard"] >= 201703
    assert torch.__version__.startswith(info["torch"])
    assert isinstance(info["cuda"], bool)
    assert info["openmp"], "ops would run on one thread"
    assert set(info["cpu_features"]) <= {"avx2", "fma", "avx512f", "avx512bw", "avx512_bf16"}
    assert _extension.reason() is None
