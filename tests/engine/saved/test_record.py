"""The log of a run: what it keeps, forgets and survives."""

import errno
import json
import sys
import threading

import pytest

from fastdhm.engine.saved.record import Log, read_log
from fastdhm.errors import UserError


def test_a_resumed_log_forgets_the_future(tmp_path):
    log = Log(tmp_path, 0, 0)
    for n in range(1, 5):
        log.write("step", step=n, epoch=n / 4, loss=1.0)
    log.write("epoch", step=4, epoch=1, loss=1.0)
    log.close()
    Log(tmp_path, 4, 0).close()  # the checkpoint was written at step 4, before the epoch's validation
    assert [(row["kind"], row["step"]) for row in read_log(tmp_path)] == [("step", n) for n in range(1, 5)]
    Log(tmp_path, 2, 0).close()
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2]


class Full:
    """A file on a disk without room."""

    def write(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self):
        pass


def test_a_full_disk_is_told_with_the_way_to_go_on(tmp_path):
    log = Log(tmp_path, 0, 0)
    log.file.close()
    log.file = Full()
    with pytest.raises(UserError, match="cannot write .*log.jsonl: no space left; free some space"):
        log.write("step", step=1, loss=1.0)
    log.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("opening", [False, True], ids=["writing", "opening"])
@pytest.mark.parametrize(("number", "shown"), [(errno.ENOSPC, False), (errno.EBADF, True)], ids=["full", "other"])
def test_a_full_disk_in_tensorboards_thread_is_not_told_twice(tmp_path, number, shown, opening, monkeypatch):
    seen, named = [], [str(tmp_path / "tensorboard" / "events.out.tfevents.1").encode()] * opening
    monkeypatch.setattr(threading, "excepthook", seen.append)
    log = Log(tmp_path, 0, 0)

    def fail():
        raise OSError(number, "what a write says", *named)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    log.close()
    assert bool(seen) == shown and threading.excepthook == seen.append


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"kind": "compile", "step": 1}) + '\n{"kind": "st')
    assert read_log(tmp_path) == [{"kind": "compile", "step": 1}]


def rows_of(*steps):
    return [json.dumps({"kind": "step", "step": n, "epoch": n / 4, "loss": 1.0}) for n in steps]


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\x00nonsense",
        b"[1, 2]",
        b'{"kind": "step"}',
        b'{"kind": "step", "step": "x", "epoch": 1}',
        b"[" * 9999,
        b'{"kind": "step", "step": 2, "epoch": 0.5, "loss": "7.1"}',
        b'{"kind": "step", "step": 2, "epoch": 0.5, "loss": {}}',
        b'{"kind": "step", "step": Infinity, "epoch": 0.5}',
        b'{"kind": "epoch", "step": 2, "epoch": NaN}',
        b'{"kind": "reid", "step": 2}',
        b'{"kind": "step", "step": 2, "epoch": 0.5, "loss": 1' + b"0" * 400 + b"}",
    ],
    ids=lambda damage: repr(damage)[:20],
)
def test_a_damaged_row_is_named_and_the_later_ones_are_kept(tmp_path, damage):
    first, *others = (row.encode() for row in rows_of(1, 2, 3))
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([first, damage, *others, b""]))
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3]
    said = []
    Log(tmp_path, 9, 9, said.append).close()
    assert len(said) == 1 and "damaged in 1 lines (2)" in said[0]
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3]


def test_a_row_behind_what_a_power_cut_left_is_found(tmp_path):
    first, second, third = rows_of(1, 2, 3)
    (tmp_path / "log.jsonl").write_text(f"{first}\n{second[:9]}{chr(0) * 40}{third}\n{second[:20]}")
    said = []
    Log(tmp_path, 9, 9, said.append).close()
    assert [row["step"] for row in read_log(tmp_path)] == [1, 3] and not said


@pytest.mark.parametrize("error", ["TypeError('Descriptors cannot be created directly')", "ImportError('no protobuf')"])
def test_a_run_goes_on_without_a_tensorboard_that_cannot_be_imported(tmp_path, monkeypatch, error):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [
        name for name in sys.modules if name.partition(".")[0] == "tensorboard" or "utils.tensorboard" in name
    ]:
        monkeypatch.delitem(sys.modules, name)
    said = []
    (tmp_path / "run").mkdir()
    log = Log(tmp_path / "run", 0, 0, said.append)
    for step in (1, 2):
        log.write("step", step=step, epoch=0.5, loss=1.0)
    log.close()
    assert [row["step"] for row in read_log(tmp_path / "run")] == [1, 2]
    assert len(said) == 1 and "TensorBoard cannot be used here" in said[0]


def test_a_log_that_is_a_folder_is_told(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(UserError, match="log.jsonl cannot be read"):
        read_log(tmp_path)
