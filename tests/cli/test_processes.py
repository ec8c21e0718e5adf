"""How a run of several processes is started, and what each wrong start says: once, in seconds."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from many_processes import LIMIT_S, processes
from processes import children_of, state_of, wait_for

from fastdhm.cli import main
from fastdhm.engine import distributed

SMALL = [
    "train", "--dataset", "synthetic", "--arch", "resnet8", "--precision", "float32", "--epochs", "1",
    "--max-steps", "1", "--batch-size", "16", "--device", "cpu", "--loader", "torch", "--workers", "0",
]  # fmt: skip
TRAIN = """
from fastdhm.cli import main
argv, more = {argv!r}, {more!r}
sys.exit(main([*argv, *more[int(os.environ["RANK"])]]))
"""


def train(tmp_path, *more, seconds=60, **environ):
    """What two processes of one run print on stderr together, and their exit statuses."""
    more = [[*words, "--data-dir", str(tmp_path / "data")] for words in (more or ([], []))]
    argv = [*SMALL, "--run-dir", str(tmp_path / "run")]
    started = processes(TRAIN.format(argv=argv, more=more), 2, seconds=seconds, **environ)
    return "".join(err for *_, err in started), [child.returncode for child, *_ in started]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((["--lr", "x"], ["--lr", "x"]), "lr is x: must be"),
        (([], ["--epochs", "none"]), "epochs is none: must be"),
        (([], ["--lr", "0.3"]), "process 1 on .* has lr 0.3, and process 0 on .* has 0.1: give all processes the same"),
        (([], ["--dataset", "folder:/nowhere"]), "process 1 on .* has dataset folder:/nowhere"),
        ((["--device", "cuda:1"],) * 2, "device is 'cuda:1' for 2 processes: say cuda"),
        ((["--batch-size", "15"],) * 2, "batch_size is 15, for 2 processes: must be a multiple of 2, such as 14"),
        (
            (["--accumulate", "16"],) * 2,
            "for 2 processes and 16 parts: must be a multiple of 32, such as 32",
        ),
        ((["--processes", "4"],) * 2, "processes is 4, and 2 were started here: leave --processes out"),
    ],
    ids=["a flag", "a flag of one", "settings", "data sets", "one GPU", "batch", "accumulated batch", "processes"],
)
def test_a_wrong_start_is_said_once(tmp_path, more, said):
    err, statuses = train(tmp_path, *more)
    assert statuses == [2, 2], err
    [line] = [line for line in err.splitlines() if line.startswith("fastdhm: error")]
    assert re.search(said, line), err
    assert "Traceback" not in err and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", [["eval"], ["embed", "pictures", "--out", "found.npy"]])
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "nothing is not there"),
        (["--devise", "cpu"], "did you mean --device"),
        (["--device", "cuda:0"], "say cuda"),
    ],
    ids=["a file", "a flag", "one GPU"],
)
def test_what_eval_and_embed_cannot_do_is_said_once(command, more, said):
    name, *rest = command
    argv = [name, "nothing", *rest, *more]
    program = f"from fastdhm.cli import main\nsys.exit(main({argv!r}))"
    ended = processes(program, 2)
    err = "".join(err for *_, err in ended)
    assert [child.returncode for child, *_ in ended] == [2, 2], err
    assert err.count("fastdhm: error") == 1 and said in err and "Traceback" not in err


@pytest.mark.slow
def test_a_port_in_use_is_said_once(tmp_path):
    with socket.create_server(("", 0)) as server:
        err, statuses = train(tmp_path, MASTER_PORT=str(server.getsockname()[1]), seconds=8)
    assert statuses == [2, 2], err
    assert err.count("fastdhm: error") == 1 and "where process 0 meets the others, is in use: set MASTER_PORT" in err


@pytest.mark.slow
def test_processes_that_do_not_come_are_named(tmp_path):
    err, statuses = train(tmp_path, WORLD_SIZE="3", LOCAL_WORLD_SIZE="3", seconds=5)
    assert statuses == [2, 2], err
    assert err.count("fastdhm: error") == 1 and "3 processes did not come in 5 s: missing at localhost:" in err


@pytest.mark.slow
def test_a_first_process_that_is_nowhere_is_said_once(tmp_path):
    err, statuses = train(tmp_path, MASTER_ADDR="nowhere.invalid", seconds=2)
    assert statuses == [2, 2], err
    assert "nowhere.invalid, the machine of process 0, has no address on" in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--processes", "2", "--batch-size", "15"], "batch_size is 15, for 2 processes: must be a multiple of 2"),
        (["--processes", "999"], "processes is 999: must be from 1 to "),
        (["--processes", ""], "processes is '': must be from 1 to "),
    ],
)
def test_what_cannot_be_is_said_before_any_process_starts(capsys, monkeypatch, flags, said):
    monkeypatch.setattr(distributed, "launch", lambda *given: pytest.fail("they were started"))
    assert main([*SMALL, *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("signalled", ["at once", "training"])
def test_none_outlives_a_launcher_that_is_killed(tmp_path, signalled):
    argv = [sys.executable, "-m", "fastdhm", *SMALL, "--max-steps", "100000", "--epochs", "10000", "--processes", "2"]
    folder = tmp_path / "run"
    run = subprocess.Popen([*argv, "--run-dir", str(folder)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(children_of(run.pid)) == 2, "both processes", LIMIT_S)
        if signalled == "training":
            wait_for((folder / "last.pt").exists, "the first checkpoint", LIMIT_S)
        left = children_of(run.pid)
    finally:
        run.kill()
        run.wait()
    wait_for(lambda: not any(map(state_of, left)), "both to end", LIMIT_S)


@pytest.mark.slow
@pytest.mark.parametrize("number", ["0", "-1", "1000000000", "two"])
def test_a_number_of_processes_that_cannot_be(tmp_path, number):
    argv = [sys.executable, "-m", "fastdhm", *SMALL, "--processes", number]
    began = time.monotonic()
    run = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, env=os.environ)
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 1 and "rocesses" in run.stderr, run.stderr
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_signal_while_they_start_ends_all_and_is_said_once(tmp_path):
    argv = [sys.executable, "-m", "fastdhm", *SMALL, "--max-steps", "100000", "--epochs", "300", "--processes", "2"]
    run = subprocess.Popen([*argv, "--run-dir", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(4)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=LIMIT_S)
    finally:
        run.kill()
    assert run.returncode == 128 + signal.SIGINT and err.count("stopped by SIGINT") <= 1, err
