"""Jobs of SLURM: what is asked of sbatch, and real jobs of submitit's stand-in on this machine."""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from processes import started, state_of, wait_for

from fastdhm.cli import main
from fastdhm.compare import slurm
from fastdhm.compare.arms import split_methods
from fastdhm.compare.jobs import find_jobs
from fastdhm.compare.plan import compare_methods
from fastdhm.compare.slurm import Slurm
from fastdhm.errors import UserError

LIMIT_S = 240
TRAINING = "--dataset synthetic:40 --arch resnet8 --batch-size 8 --branches [B2] --log-every 2"
MACHINE = "--device cpu --precision float32 --compile off --loader torch --workers 0"
FLAGS = ["compare", *TRAINING.split(), *MACHINE.split(), "--methods", "baseline,dhm", "--seeds", "1"]
LOCAL = ["--slurm", "any", "--slurm-args", "cluster=local"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
has_submitit = importlib.util.find_spec("submitit") is not None
needs_submitit = pytest.mark.skipif(not has_submitit, reason="submitit is not installed: pip install '.[slurm]'")


class Kind:
    """What an executor of submitit knows itself."""

    @staticmethod
    def _valid_parameters():
        return {"time", "partition", "mem", "cpus_per_task", "gpus_per_node", "qos"}


def jobs_of(folder: Path, device: str = "auto"):
    values = {"dataset": "synthetic:40", "device": device}
    return find_jobs(compare_methods(split_methods("baseline,dhm"), (0,), values), folder)


def test_options_of_sbatch_are_handed_on(tmp_path):
    args = "time=2-12:00:00,cpus_per_task=8,--mem=32G,exclude=gpu[07,09],qos=low"
    told = slurm._parameters(Slurm("gpu", args, 3), jobs_of(tmp_path), Kind)
    assert (told["partition"], told["cpus_per_task"], told["mem"], told["qos"]) == ("gpu", 8, "32G", "low")
    assert told["additional_parameters"] == {"time": "2-12:00:00", "exclude": "gpu[07,09]"}
    assert told["gpus_per_node"] == 1, "a GPU each unless something else is said"
    assert told["array_parallelism"] == 3 and told["srun_args"] == ["--cpus-per-task=8"]
    assert "gpus_per_node" not in slurm._parameters(Slurm("cpu"), jobs_of(tmp_path, "cpu"), Kind)
    assert "gpus_per_node" not in slurm._parameters(Slurm("gpu", "gres=gpu:a100:1"), jobs_of(tmp_path), Kind)


def test_options_without_a_value_are_refused():
    with pytest.raises(UserError, match="slurm_args has 'exclusive': write options of sbatch as NAME=VALUE"):
        Slurm("gpu", "exclusive").options()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--slurm-args", "time=1"], "slurm_args is given without slurm"),
        (["--slurm", "gpu", "--slurm-args", "cluster=moon"], "cluster=moon: must be slurm or local"),
        (["--slurm", "gpu", "--jobs", "0"], "jobs is 0: must be a number of jobs at once"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(tmp_path, capsys, flags, message):
    assert main([*FLAGS, "--out", str(tmp_path / "comparison"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "comparison").exists()


def test_without_submitit_or_sbatch_the_remedy_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    if has_submitit:
        assert main([*FLAGS, "--out", str(tmp_path / "comparison"), "--slurm", "gpu"]) == 2
        assert "--slurm needs sbatch, which is not on this machine" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main([*FLAGS, "--out", str(tmp_path / "comparison"), "--slurm", "gpu"]) == 2
    assert "not installed: pip install 'fastdhm[slurm]'" in capsys.readouterr().err


def test_states_are_read_from_squeue(monkeypatch):
    listed = "12_0|RUNNING|None\n12_1|PENDING|Resources\n"
    monkeypatch.setattr(slurm, "_called", lambda *words: listed)
    assert slurm._states("slurm", ["12_0"]) == {"12_0": "RUNNING", "12_1": "PENDING (Resources)"}


def test_a_squeue_that_fails_is_no_end_of_the_jobs(monkeypatch):
    monkeypatch.setattr(slurm, "_called", lambda *words: (_ for _ in ()).throw(UserError("no controller")))
    assert slurm._states("slurm", ["12_0"]) is None


def flags(out: Path, epochs: int) -> list[str]:
    return [*FLAGS, "--epochs", str(epochs), "--out", str(out), "--data-dir", str(out.parent / "data"), *LOCAL]


def numbers(folder: Path) -> list[int]:
    return [int(entry["job"]) for entry in json.loads((folder / "logs" / "jobs.json").read_text()).values()]


def networks(folder: Path) -> dict[str, bytes]:
    """The weights of each run, without the header of their file, which names the folder of the data."""
    files = {path.parent.name: path.read_bytes() for path in folder.glob("runs/*/network.safetensors")}
    return {name: file[8 + int.from_bytes(file[:8], "little") :] for name, file in files.items()}


@needs_submitit
@pytest.mark.slow
def test_jobs_go_on_without_the_command_are_found_again_and_the_last_writes_the_table(tmp_path):
    folder = tmp_path / "comparison"
    with started(flags(folder, epochs=60), tmp_path / "said", ONE_THREAD) as run:  # so that none is done before
        run.printed("2 jobs submitted, 0 found from before")
        jobs = numbers(folder)
        os.kill(run.pid, signal.SIGINT)
        assert run.ended(LIMIT_S) == 128 + signal.SIGINT
        assert f"2 jobs left to go on without this command; cancel with: kill {jobs[0]} {jobs[1]}" in run.out
        assert f"continue with: fastdhm compare --resume {folder} --slurm any --slurm-args cluster=local" in run.out
    try:
        assert all(map(state_of, jobs)), "a job ended with the command"
        with started(["compare", "--resume", str(folder), *LOCAL], tmp_path / "again", ONE_THREAD) as run:
            run.printed("0 jobs submitted, 2 found from before")
            os.kill(run.pid, signal.SIGTERM)
            assert run.ended(LIMIT_S) == 128 + signal.SIGTERM
        wait_for(lambda: not any(map(state_of, jobs)), "the jobs to end", LIMIT_S)
        results = json.loads((folder / "results.json").read_text())
        assert results["complete"], "nobody wrote the table at the end"
        assert {each["machine"] for each in results["runs"]} == {"cpu, float32, a SLURM job"}
        with started(["compare", "--resume", str(folder), *LOCAL], tmp_path / "third", ONE_THREAD) as run:
            assert run.ended(LIMIT_S) == 0
            assert "0 jobs submitted, 0 found from before" in run.out
    finally:
        kill(jobs)


@needs_submitit
@pytest.mark.slow
def test_a_preempted_job_saves_and_is_put_back_and_a_cancelled_one_is_told(tmp_path):
    folder = tmp_path / "comparison"
    with started(flags(folder, epochs=60), tmp_path / "said", ONE_THREAD) as run:  # so that none is done before
        run.printed("2 jobs submitted")
        jobs = numbers(folder)
        try:
            wait_for((folder / "runs/dhm-seed0/last.pt").exists, "a run", LIMIT_S)
            for pid in tasks(jobs[1]):
                os.kill(pid, signal.SIGUSR2)  # as SLURM does
            wait_for((folder / "runs/baseline-seed0/last.pt").exists, "the other", LIMIT_S)
            for pid in runs_under(jobs[0]):
                os.kill(pid, signal.SIGTERM)  # as scancel does
            assert run.ended(LIMIT_S) == 1
            assert "baseline-seed0: job" in run.out and "ended before its run did" in run.out
            log = (folder / "logs/submitit" / f"{jobs[1]}_0_log.err").read_text()
            log += (folder / "logs/submitit" / f"{jobs[1]}_0_log.out").read_text()
            assert "Requeued job" in log
            assert networks(folder).keys() == {"dhm-seed0"}
        finally:
            kill(jobs)


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


def tasks(job: int) -> list[int]:
    """The processes of submitit under the one that controls a job."""
    return children(job)


def runs_under(job: int) -> list[int]:
    return [pid for task in tasks(job) for pid in children(task)]


def kill(jobs: list[int]) -> None:
    for job in jobs:
        for pid in [*runs_under(job), *tasks(job), job]:
            if state_of(pid):
                os.kill(pid, signal.SIGKILL)
