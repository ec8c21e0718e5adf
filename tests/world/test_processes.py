"""What happens to the processes of a run: killed, stopped, without their data, without room.

Each ends in seconds and in one line, or goes on; what was learnt is saved, and a resume ends where an undisturbed run
would.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import children_of, started, state_of, wait_for

from fastdhm.cli import main
from fastdhm.data.loaders.ffcv_library import why_not
from runs import assert_same_state

pytestmark = pytest.mark.slow
SECONDS = 60  # in which a run ends that something was done to
FLAGS = "--arch resnet8 --method baseline --epochs 3 --batch-size 8 --device cpu --precision float32 --compile off"


def train(root: Path, run_dir: Path, loader: str, workers: int = 2) -> list[str]:
    folders = ["--data-dir", str(root.parent / "data"), "--run-dir", str(run_dir)]
    return [
        "train",
        "--dataset",
        f"folder:{root}",
        *FLAGS.split(),
        "--loader",
        loader,
        "--workers",
        str(workers),
        *folders,
    ]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Large enough that an epoch takes as long as it takes to do something to it."""
    root, random = tmp_path_factory.mktemp("world") / "pictures", np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                noise_HWC = random.integers(0, 256, (700, 700, 3), np.uint8)
                Image.fromarray(noise_HWC).save(root / split / name / f"{i:02}.png", compress_level=1)
    return root


@pytest.fixture(scope="module")
def undisturbed(pictures):
    """``undisturbed(loader)``: a run that nothing happened to, made once."""

    def run(loader: str) -> Path:
        run_dir = pictures.parent / f"undisturbed-{loader}"
        if not run_dir.exists():
            assert main(train(pictures, run_dir, loader, workers=0)) == 0
        return run_dir

    return run


def assert_resumes(run_dir: Path, whole: Path) -> None:
    assert main(["train", "--resume", str(run_dir), "--workers", "0"]) == 0
    assert_same_state(run_dir / "last.pt", whole / "last.pt")


def test_a_worker_that_is_killed_ends_the_run_in_one_line(pictures, undisturbed, tmp_path):
    with started(train(pictures, tmp_path / "run", "torch"), tmp_path / "output") as run:
        run.printed("epoch 1/3")
        os.kill(run.child(), signal.SIGKILL)
        assert run.ended(SECONDS) == 2
    (line,) = run.err.splitlines()
    assert "was killed, as when memory runs out" in line and "--workers" in line
    assert f"fastdhm train --resume {tmp_path / 'run'}" in run.out
    assert_resumes(tmp_path / "run", undisturbed("torch"))


def test_a_worker_that_is_stopped_goes_on(pictures, undisturbed, tmp_path):
    with started(train(pictures, tmp_path / "run", "torch"), tmp_path / "output") as run:
        run.printed("epoch 1/3")
        os.kill(run.child(), signal.SIGSTOP)
        assert run.ended(3 * SECONDS) == 0
    assert run.err == "" or "was stopped (SIGSTOP): continuing it" in run.err  # its work may have been done
    assert_same_state(tmp_path / "run" / "last.pt", undisturbed("torch") / "last.pt")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_nothing_lives_on_when_the_run_is_ended(pictures, undisturbed, tmp_path, number):
    with started(train(pictures, tmp_path / "run", "torch"), tmp_path / "output") as run:
        run.printed("epoch 1/3")
        workers = {run.child(), *children_of(run.pid)}
        os.kill(run.pid, number)
        assert run.ended(SECONDS) == (-number if number == signal.SIGKILL else 128 + number)
        wait_for(lambda: not any(map(state_of, workers)), "the end of its workers")
    assert_resumes(tmp_path / "run", undisturbed("torch"))


def test_time_in_which_the_run_itself_stood_still_does_not_count(pictures, undisturbed, tmp_path):
    environ = {"FASTDHM_WAIT_SECONDS": "4"}
    with started(train(pictures, tmp_path / "run", "torch"), tmp_path / "output", environ) as run:
        run.printed("epoch 1/3")
        os.kill(run.pid, signal.SIGSTOP)
        time.sleep(6)
        os.kill(run.pid, signal.SIGCONT)
        assert run.ended(3 * SECONDS) == 0
    assert_same_state(tmp_path / "run" / "last.pt", undisturbed("torch") / "last.pt")


@pytest.mark.parametrize("loader", ["torch", "ffcv"])
def test_data_taken_away_in_the_middle_costs_nothing_learnt(pictures, undisturbed, tmp_path, loader):
    if loader == "ffcv" and why_not():
        pytest.skip(why_not())
    whole = undisturbed(loader)
    root, away = shutil.copytree(pictures, tmp_path / "pictures"), tmp_path / "away"
    with started(train(root, tmp_path / "run", loader), tmp_path / "output") as run:
        run.printed("epoch 1/3")
        root.rename(away)
        status = run.ended(3 * SECONDS)
    if loader == "ffcv":  # it reads the pictures no more
        assert (status, run.err) == (0, "")
    else:
        assert status == 2 and len(run.err.splitlines()) == 1
        assert str(root) in run.err
        away.rename(root)
        assert main(["train", "--resume", str(tmp_path / "run"), "--workers", "0"]) == 0
    assert_same_state(tmp_path / "run" / "last.pt", whole / "last.pt")


def small_shm() -> list[str]:
    """What runs a command where /dev/shm holds 64 KiB; skips where mounting is not allowed."""
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    return mount


def few(limit: str) -> list[str]:
    """What runs a command under a limit of the shell's ``ulimit``."""
    return ["sh", "-c", f'ulimit {limit} && exec "$@"', "sh"]


@pytest.mark.parametrize("limit", ["shm", "-n 40", "-f 20000"])
def test_a_machine_with_little_of_something_trains_all_the_same(pictures, undisturbed, tmp_path, limit):
    wrapper = small_shm() if limit == "shm" else few(limit)
    with started(train(pictures, tmp_path / "run", "torch"), tmp_path / "output", wrapper=wrapper) as run:
        assert run.ended(3 * SECONDS) == 0, run.err
    assert_same_state(tmp_path / "run" / "last.pt", undisturbed("torch") / "last.pt")
