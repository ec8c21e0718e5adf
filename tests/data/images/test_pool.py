"""Worker processes: what comes back, and what happens when one is killed, stopped, stuck or cannot be started."""

import faulthandler
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from fastdhm.data.images import pool as _pool
from fastdhm.data.images.pool import WorkerPool, in_hand
from fastdhm.errors import UserError
from fastdhm.system.waiting import WaitedInVain

LARGE = 1 << 20  # bytes: more than a pipe holds


def names_file(sample: int) -> str:
    return f"/photos/{sample}.jpg"


def answers(work, items, workers=2, **options) -> list:
    with WorkerPool(work, items, workers, label=names_file, **options) as pool:
        return list(pool.answers())


def read_then(act, at: int):
    """Work that notes what it reads, and does ``act`` at one item."""

    def work(item: int) -> int:
        in_hand(item)
        if item == at:
            act()
        return item

    return work


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_answers_come_in_order_whatever_their_size(workers):
    def work(item: int) -> bytes:
        time.sleep(0.002 * (item % 3))
        return bytes([item]) * (LARGE if item % 2 else 1)

    assert [(answer[0], len(answer)) for answer in answers(work, range(12), workers)] == [
        (item, LARGE if item % 2 else 1) for item in range(12)
    ]


def test_what_is_written_to_a_room_arrives():
    def work(item: int, room: memoryview) -> int:
        room[:] = bytes([item]) * len(room)
        return -item

    with WorkerPool(work, range(20), 3, room_bytes=1000) as pool:
        for item, (answer, room) in enumerate(pool.answers()):
            assert (answer, bytes(room)) == (-item, bytes([item]) * 1000)


def test_an_exception_is_raised_as_it_was():
    def mistake():
        raise UserError("cat.jpg: not a complete image")

    with pytest.raises(UserError, match="cat.jpg: not a complete image") as caught:
        answers(read_then(mistake, at=3), range(9))
    assert caught.value.__cause__ is None
    with pytest.raises(ZeroDivisionError) as caught:
        answers(lambda item: item // 0, range(2))
    assert "in <lambda>" in str(caught.value.__cause__)  # where it was raised


def test_an_exception_that_cannot_be_sent_is_told():
    def strange():
        raise OSError(lambda: None)

    with pytest.raises(RuntimeError, match="OSError cannot be sent"):
        answers(read_then(strange, at=0), range(2))


def test_no_memory_is_told_with_the_remedy():
    def huge():
        raise MemoryError

    with pytest.raises(UserError, match="no memory left: use fewer --workers"):
        answers(read_then(huge, at=0), range(2))


@pytest.mark.parametrize(
    ("number", "says"), [("SIGKILL", "was killed, as when memory runs out"), ("SIGSEGV", "crashed with SIGSEGV")]
)
def test_a_worker_that_dies_names_the_file_that_it_read(number, says):
    def die():
        faulthandler.disable()  # pytest's own words about it
        os.kill(os.getpid(), getattr(signal, number))

    started = time.monotonic()
    with pytest.raises(UserError, match=f"worker process [0-9]+ {says}.* while reading /photos/5.jpg"):
        answers(read_then(die, at=5), range(40))
    assert time.monotonic() - started < 120


def test_a_worker_killed_in_the_middle_of_its_answer_is_told():
    def work(item: int) -> bytes:
        if item == 4:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return bytes(8 * LARGE)

    with WorkerPool(work, range(9), 1) as pool, pytest.raises(UserError, match="was killed"):
        for _ in pool.answers():
            time.sleep(0.1)


def test_a_signal_to_the_whole_job_is_the_parents_to_obey():
    def all_signals():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), number)

    assert answers(read_then(all_signals, at=2), range(6)) == list(range(6))


def test_a_stopped_worker_is_told_to_go_on(monkeypatch, capfd):
    monkeypatch.setattr(_pool, "CONTINUE_S", 0.1)
    stop = read_then(lambda: os.kill(os.getpid(), signal.SIGSTOP), at=1)
    assert answers(stop, range(6)) == list(range(6))
    assert "was stopped (SIGSTOP): continuing it" in capfd.readouterr().err


def test_a_read_that_never_returns_is_told_and_then_ended(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr("fastdhm.system.waiting.SAY_S", 0.5)
    monkeypatch.setenv("FASTDHM_WAIT_SECONDS", "1.5")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WaitedInVain, match=r"data did not come in [12] s: worker .* is reading /photos/3.jpg.*=9"):
        answers(read_then((tmp_path / "pipe").read_bytes, at=3), range(9))
    assert "waiting for data for" in capfd.readouterr().err


def test_who_cannot_be_started_is_told_with_the_remedy(monkeypatch):
    fork, started = os.fork, []

    def limited() -> int:
        if len(started) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(fork())
        return started[-1]

    monkeypatch.setattr(os, "fork", limited)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match=r"worker 3 of 5 cannot be started \(Resource .*use fewer --workers"):
        answers(str, range(9), workers=5)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)


def test_nobody_lives_on_when_the_reader_leaves_early():
    before = len(os.listdir("/proc/self/fd"))
    with WorkerPool(lambda item: item, range(1000), 3) as pool:
        pids = [worker.pid for worker in pool._workers]
        assert next(pool.answers()) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("given", ["", "soon", "0", "-1", "nan"])
def test_a_limit_that_is_no_time_is_refused(monkeypatch, given):
    monkeypatch.setenv("FASTDHM_WAIT_SECONDS", given)
    with pytest.raises(UserError, match="FASTDHM_WAIT_SECONDS is .*: must be a number of seconds above 0"):
        answers(lambda item: time.sleep(1), range(2))
