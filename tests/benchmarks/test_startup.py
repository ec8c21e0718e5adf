"""``fastdhm bench startup``: processes are watched from outside, a failed one gets no time."""

import json
import sys

import pytest

from fastdhm.benchmarks import startup
from fastdhm.benchmarks.harness.frame import Frame
from fastdhm.benchmarks.startup import Started, watch
from fastdhm.cli import main
from fastdhm.errors import UserError


@pytest.mark.slow
def test_smoke_run(tmp_path, capsys):
    flags = ["--quick", "--dataset", "synthetic:256", "--steps", "4", "--device", "cpu", "--json"]
    assert main(["bench", "startup", *flags, "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    first, full = record["comparisons"]
    assert list(first["peers"]) == list(full["peers"]) == ["cold", "warm", "reference"]
    for kind in ("cold", "warm", "reference"):
        assert 0 < record[f"{kind}_first_step_s"] <= record[f"{kind}_full_speed_s"]
    assert record["speedup"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"startup.json", "startup.csv", "startup.png"}


def test_full_speed_begins_where_steps_stay_short():
    slow, fast = [0.5] * 10, [0.1] * 30
    times = [5.0]
    for duration in (*slow, *fast):
        times.append(times[-1] + duration)
    assert Started(times).full_speed() == pytest.approx(5 + 8 * 0.5, abs=1.1)  # a median of five looks ahead by two
    assert Started([3.0, 3.1, 3.2, 3.3, 3.4]).full_speed() == pytest.approx(3.1)


def program(tmp_path, text):
    path = tmp_path / "program.py"
    path.write_text(text)
    return [sys.executable, str(path)]


def test_watching(tmp_path):
    log = tmp_path / "log.jsonl"
    writes = """
import json, sys, time
with open(sys.argv[1], "w", buffering=1) as log:
    for kind in ("plan", "step", "step", "startup", "step"):
        time.sleep(0.05)
        log.write(json.dumps({"kind": kind} | ({"startup_seconds": 0.01} if kind == "startup" else {})) + "\\n")
    log.write("{cut")
"""
    command = [*program(tmp_path, writes), str(log)]
    started = watch(command, log, 3, {}, None)
    assert started.failure is None
    assert started.step_seconds[0] == 0.01  # the run's own word
    assert 0.1 < started.step_seconds[1] < started.step_seconds[2]
    log.unlink()
    seen = watch(command, log, 3, {}, None, own_word=False)  # as on a GPU, where a run's word is of a launch
    assert 0.05 < seen.step_seconds[0] < seen.step_seconds[1]
    assert "its log has 3 steps: must be 4" in watch(command, log, 4, {}, None).failure


def test_a_program_that_fails_gets_no_time(tmp_path):
    started = watch(program(tmp_path, "raise SystemExit('no such thing')"), tmp_path / "log", 3, {}, 1)
    assert started.failure == "it ended with status 1: no such thing"


def test_a_refusal_of_the_program_is_a_user_error(tmp_path):
    program_text = "import sys; print('fastdhm: error: no such folder', file=sys.stderr); sys.exit(2)"
    with pytest.raises(UserError, match="^no such folder$"):
        watch(program(tmp_path, program_text), tmp_path / "log", 3, {}, None)


def test_a_program_ends_with_its_watcher(tmp_path, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(startup.time, "sleep", interrupted)
    running = []
    popen = startup.subprocess.Popen
    monkeypatch.setattr(
        startup.subprocess, "Popen", lambda *args, **options: running.append(popen(*args, **options)) or running[0]
    )
    with pytest.raises(KeyboardInterrupt):
        watch(program(tmp_path, "import threading; threading.Event().wait(60)"), tmp_path / "log", 3, {}, None)
    assert running[0].returncode == -9


def test_all_programs_are_told_the_device(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(startup, "watch", lambda command, *args: told.append(command) or Started([1.0, 2.0]))
    run = {"dataset": "synthetic", "arch": "resnet8", "method": "dhm", "device": "cpu"}
    startup.measure(Frame("startup", device="cpu", rounds=1, out=tmp_path), run, 4, "off")
    assert len(told) == 3
    assert " ".join(told[1]).partition("--method ")[2].startswith("dhm --device cpu --compile off --max-steps 4 ")
    assert told[2][-4:] == ["synthetic", "resnet8", "dhm", "cpu"]


def test_a_failed_run_is_status_1(tmp_path, capsys, monkeypatch):
    fine = Started([1.0, 1.1, 1.2, 1.3])
    monkeypatch.setattr(startup, "start_training", lambda *args: Started([], "it ended with status 2: what it said"))
    monkeypatch.setattr(startup, "start_reference", lambda *args: fine)
    assert main(["bench", "startup", "--quick", "--device", "cpu", "--json", "--out", str(tmp_path)]) == 1
    record = json.loads(capsys.readouterr().out)
    assert "what it said" in record["comparisons"][0]["peers"]["cold"]["failure"]
    assert record["speedup"] is None
    assert record["reference_first_step_s"] == 1.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--steps 3", "--steps is 3: must be at least 4"),
        ("--arch resnet9", "resnet9 has 9 layers: must be 6n+2"),
        ("--method foo", "unknown method 'foo'"),
        ("--dataset cifar11", "unknown data set 'cifar11'"),
        ("--dataset imagenet", "--dataset is imagenet: a cold start has an empty data folder"),
        ("--compile maybe", "unknown value of --compile 'maybe'"),
        ("--rounds 0", "--rounds is 0: must be at least 1"),
    ],
    ids=lambda value: value if value.startswith("--") else "",
)
def test_a_mistake_is_one_line(flags, message, tmp_path, capsys):
    assert main(["bench", "startup", *flags.split(), "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
