"""Files that something damaged: each kind that is read says so, without a traceback, a hang, or a wrong answer."""

import importlib.util
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "fuzz.py"
EACH = 50  # of 20 kinds: a thousand


def load_tool():
    spec = importlib.util.spec_from_file_location("fuzz", TOOL)
    tool = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = tool  # for its dataclass
    spec.loader.exec_module(tool)
    return tool


fuzz = load_tool()


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_a_damaged_file_is_refused_with_a_message_or_reads_like_the_good_one(kind):
    assert not fuzz.run_apart(kind, range(EACH))


def test_a_reader_that_raises_or_accepts_changed_data_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read(path):
        data = path.read_bytes()
        if len(data) < 100:
            raise KeyError("x")
        return data

    kind = fuzz.Kind(make=lambda folder: folder / "x", read=read, sealed=True)
    good = bytes(range(256))
    verdicts = {
        (fuzz.run_one(kind, tmp_path / "x", good, good, "x", n) or "right").partition(":")[0] for n in range(60)
    }
    assert {"KeyError", "taken, though it says something else now"} <= verdicts
