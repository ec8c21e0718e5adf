"""Runs side by side: their places, and real processes that are watched, stopped and killed."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from processes import children_of, started, state_of, wait_for

from fastdhm.compare import side_by_side
from fastdhm.compare.arms import split_methods
from fastdhm.compare.jobs import find_jobs
from fastdhm.compare.plan import compare_methods
from fastdhm.compare.side_by_side import how_many, own_place, said_last
from fastdhm.errors import UserError
from fastdhm.system.folders import held

LIMIT_S = 240
# so many epochs that a run is still at work when a signal comes
TRAINING = "--dataset synthetic:40 --arch resnet8 --batch-size 8 --epochs 60 --branches [B2] --log-every 2"
MACHINE = "--device cpu --precision float32 --compile off --loader torch --workers 0"
FLAGS = ["compare", *TRAINING.split(), *MACHINE.split(), "--methods", "baseline,dhm", "--seeds", "1"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def flags(out: Path, *more: str) -> list[str]:
    return [*FLAGS, "--out", str(out), "--data-dir", str(out.parent / "data"), *more]


def jobs_of(folder: Path, device: str = "cpu"):
    values = {"dataset": "synthetic:40", "device": device}
    return find_jobs(compare_methods(split_methods("baseline,dhm"), (0, 1), values), folder)


def see(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(
    ("device", "gpus", "text", "number"),
    [("auto", 3, "auto", 3), ("cuda", 8, "auto", 4), ("auto", 2, "2", 2), ("cpu", 2, "3", 3), ("auto", 0, "2", 2)],
)
def test_as_many_runs_as_asked_for_or_as_there_are_gpus(tmp_path, monkeypatch, device, gpus, text, number):
    see(monkeypatch, gpus)
    assert how_many(text, jobs_of(tmp_path, device)) == number


@pytest.mark.parametrize(
    ("device", "text", "message"),
    [
        ("auto", "3", "jobs is 3, and torch sees 2 GPUs here"),
        ("cuda:1", "2", "device is cuda:1 for 2 runs at once: say cuda"),
        ("cpu", "0", "jobs is 0: must be"),
        ("cpu", "many", "jobs is many: must be"),
    ],
)
def test_a_number_of_runs_that_cannot_be_is_told(tmp_path, monkeypatch, device, text, message):
    see(monkeypatch, 2)
    with pytest.raises(UserError, match=message):
        how_many(text, jobs_of(tmp_path, device))


def test_each_place_has_its_gpu_and_its_threads(monkeypatch):
    monkeypatch.setattr(side_by_side.processors, "count", lambda: 8)
    places = [own_place(n, 3, "cuda", {}) for n in range(3)]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["0", "1", "2"]
    assert {place["OMP_NUM_THREADS"] for place in places} == {"2"}
    masked = {"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b", "OMP_NUM_THREADS": "5"}
    assert own_place(1, 2, "cuda", masked)["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    assert own_place(1, 2, "cpu", masked)["OMP_NUM_THREADS"] == "5", "the user's choice"
    assert own_place(0, 16, "cpu", {})["OMP_NUM_THREADS"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in own_place(0, 2, "cpu", {})


def test_a_log_says_why_a_run_ended(tmp_path):
    log = tmp_path / "log"
    assert said_last(log) == "it printed nothing"
    log.write_text("fastdhm: error: old\n", "utf-8")
    begins = log.stat().st_size
    log.write_text("fastdhm: error: old\nstep 1\nfastdhm: error: the disk is full\nlast words\n", "utf-8")
    assert said_last(log, begins) == "the disk is full"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same runs one by one, with one thread."""
    folder = tmp_path_factory.mktemp("alone") / "comparison"
    with started(flags(folder), folder.parent / "said", ONE_THREAD) as run:
        assert run.ended(LIMIT_S) == 0
    return folder


def networks(folder: Path) -> dict[str, bytes]:
    """The weights of each run, without the header of their file, which names the folder of the data."""
    files = {path.parent.name: path.read_bytes() for path in folder.glob("runs/*/network.safetensors")}
    return {name: file[8 + int.from_bytes(file[:8], "little") :] for name, file in files.items()}


def assert_same(folder: Path, alone: Path) -> None:
    """Every weight in every bit, and the table."""
    assert networks(folder) == networks(alone) and len(networks(folder)) == 2
    found = [json.loads((each / "results.json").read_text())["summary"] for each in (folder, alone)]
    assert found[0] == found[1]


@pytest.mark.slow
def test_side_by_side_is_the_same_as_one_by_one_with_as_many_threads(alone, tmp_path):
    folder = tmp_path / "comparison"
    with started(flags(folder, "--jobs", "2"), tmp_path / "said", ONE_THREAD) as run:
        assert run.ended(LIMIT_S) == 0
        assert "2 runs to train, 2 at once with 1 thread each" in run.out
        assert "(2 of 2 runs done)" in run.out
    assert_same(folder, alone)
    table = " ".join((folder / "README.md").read_text().split())
    assert "2 runs shared a machine with others, or may have (up to 2 at once)" in table
    assert "these are no times of a run alone" in table
    times = [line.split("|") for line in (folder / "table.md").read_text().splitlines() if "up to 2 at once |" in line]
    assert [cells[4].strip() for cells in times] == ["-", "-"], "a ratio of times that are not comparable"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_command_stops_all_runs_which_go_on_bit_for_bit(alone, tmp_path, number):
    folder = tmp_path / "comparison"
    with started(flags(folder, "--jobs", "2"), tmp_path / "said", ONE_THREAD) as run:
        wait_for(lambda: len(list(folder.glob("runs/*/last.pt"))) == 2, "both runs", LIMIT_S)
        runs = children_of(run.pid)
        os.kill(run.pid, number)
        status = run.ended(LIMIT_S)
        wait_for(lambda: not any(map(state_of, runs)), "the runs to end", LIMIT_S)
        if number != signal.SIGKILL:
            assert status == 128 + number
            assert f"fastdhm compare --resume {folder}" in run.out and "each saves" in run.out
    with started(["compare", "--resume", str(folder), "--jobs", "2"], tmp_path / "again", ONE_THREAD) as run:
        assert run.ended(LIMIT_S) == 0, run.out
    assert_same(folder, alone)


@pytest.mark.slow
def test_a_killed_run_is_told_and_the_others_go_on(alone, tmp_path):
    folder = tmp_path / "comparison"
    with started(flags(folder, "--jobs", "2"), tmp_path / "said", ONE_THREAD) as run:
        wait_for(lambda: (folder / "runs/dhm-seed0/last.pt").exists(), "a run", LIMIT_S)
        for pid in children_of(run.pid):
            if b"dhm-seed0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        assert run.ended(LIMIT_S) == 1
        assert "dhm-seed0 was killed by SIGKILL, perhaps because memory ran out: try fewer --jobs" in run.out
        assert "baseline-seed0: finished" in run.out
    assert networks(folder).keys() == {"baseline-seed0"}
    with started(["compare", "--resume", str(folder), "--jobs", "2"], tmp_path / "again", ONE_THREAD) as run:
        assert run.ended(LIMIT_S) == 0
    assert_same(folder, alone)


@pytest.mark.slow
def test_a_run_that_fails_and_one_that_another_makes(tmp_path):
    folder = tmp_path / "comparison"
    methods = ["--methods", "broken=baseline:lr=1e20,baseline,dhm", "--jobs", "3"]
    taken = folder / "runs" / "dhm-seed0"
    with held(taken, "something", print), started(flags(folder, *methods), tmp_path / "said") as run:
        assert run.ended(LIMIT_S) == 1
        assert "broken-seed0: failed: the loss is not finite" in run.out
        assert f"something (process {os.getpid()}" in run.out and "left to another" in run.out
    states = {each["name"]: each["status"] for each in json.loads((folder / "results.json").read_text())["runs"]}
    assert states == {"broken-seed0": "failed", "baseline-seed0": "finished", "dhm-seed0": "missing"}


def test_a_resumed_run_may_lie_on_another_gpu(tmp_path, monkeypatch):
    """Where it lay before does not count: each process sees its own GPU alone."""
    see(monkeypatch, 2)
    [job, *_] = jobs_of(tmp_path, "cuda")
    before = dataclasses.replace(job.config, device="cuda:1")
    monkeypatch.setattr(type(job), "as_begun", lambda self: before)
    assert how_many("2", [job, job]) == 2
