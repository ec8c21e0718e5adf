"""Signals that ask to end: noted while a run trains, obeyed at once elsewhere."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fastdhm.system import signals
from fastdhm.system.signals import ENDING, Stopped, end_at_once, noted, stop_signals


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch):
    """Python's own handlers, whatever this one has inherited, and no two signals are one."""
    monkeypatch.setattr(signals, "TWICE", 0)
    usual = dict.fromkeys(ENDING, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_every_signal_that_asks_to_end_is_noted_while_a_run_trains(number):
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert stop() is None
        os.kill(os.getpid(), number)
        assert stop() == number
    assert signal.getsignal(number) == before
    assert noted() is None


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_elsewhere_it_ends_the_command_at_once(number):
    with end_at_once(), pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), number)
    assert stopped.value.number == number


def test_a_signal_that_comes_while_python_cleans_up_is_obeyed_and_shows_no_traceback(capsys):
    class Dying:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)  # here it is handled

    with end_at_once(), pytest.raises(Stopped) as stopped:
        Dying()
        for _ in range(200):
            time.sleep(0.01)
    assert stopped.value.number == signal.SIGTERM and noted() is None
    assert capsys.readouterr().err == ""


def test_a_second_signal_acts_at_once():
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop() == signal.SIGTERM


def test_a_signal_sent_twice_is_one_request(monkeypatch):
    """``timeout`` sends it to the process and to its group; the limit of processor time sends one every second."""
    with stop_signals() as stop:
        monkeypatch.setattr(signals, "TWICE", 60)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        monkeypatch.setattr(signals, "TWICE", 0)
        os.kill(os.getpid(), signal.SIGXCPU)
        assert stop() == signal.SIGTERM


def test_a_signal_before_the_loop_is_not_lost():
    """Even where what it raised was swallowed, as a destructor's exceptions are."""
    with end_at_once():
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        with stop_signals() as stop:
            assert stop() == signal.SIGTERM


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with end_at_once(), stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_forked_worker_leaves_the_decision_to_its_parent():
    with stop_signals():
        worker = os.fork()
        if not worker:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C, which reaches the whole group
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)  # as a parent ends it
            time.sleep(60)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -signal.SIGTERM


def test_what_does_not_end_is_killed_by_one_more():
    program = (
        "import os, signal\nfrom fastdhm.system import signals\nsignals.TWICE = 0\n"
        "with signals.end_at_once():\n"
        "  for _ in range(3):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except KeyboardInterrupt: print('once', flush=True)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60)
    assert run.returncode == -signal.SIGTERM
    assert run.stdout == b"once\n"
