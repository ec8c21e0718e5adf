"""Whole comparisons: made from scratch, killed and called again, extended, refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastdhm.cli import main
from fastdhm.compare.directory import read_settings, write_settings
from fastdhm.engine.saved.record import read_log
from fastdhm.engine.sums import TrainingSums

# 5 steps an epoch
TRAINING = "--dataset synthetic:40 --arch resnet8 --batch-size 8 --epochs 2 --branches [B2] --log-every 2"
MACHINE = "--device cpu --precision float32 --compile off --loader torch --workers 0"
FLAGS = ["compare", *TRAINING.split(), *MACHINE.split(), "--methods", "baseline,dhm", "--seeds", "2"]

KILLED_FROM_INSIDE = """
import os, signal, sys
from fastdhm.cli import main
from fastdhm.engine.sums import TrainingSums

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit that it is ignored
number, left = int(sys.argv[1]), int(sys.argv[2])
add = TrainingSums.add

def add_and_signal(self, *values):
    global left
    add(self, *values)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), number)

TrainingSums.add = add_and_signal
sys.exit(main(sys.argv[3:]))
"""


def flags(out: Path, *more: str) -> list[str]:
    return [*FLAGS, "--out", str(out), "--data-dir", str(out.parent / "data"), *more]


def stopped(number: signal.Signals, after_steps: int, arguments: list[str]) -> subprocess.CompletedProcess:
    """A comparison in a process of its own that gets the signal after so many steps, over all its runs."""
    program = [sys.executable, "-c", KILLED_FROM_INSIDE, str(int(number)), str(after_steps)]
    return subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=300)


def scores(folder: Path) -> dict:
    """All of the results but the times."""
    results = json.loads((folder / "results.json").read_text())
    for run in results["runs"]:
        del run["train_seconds"], run["val_seconds"]
    return results


def train_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingSums, "add", lambda *_: pytest.fail("a step was taken"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "comparison"
    assert main(flags(folder)) == 0
    return folder


def test_it_leaves_what_the_readme_says(whole):
    assert {"compare.yaml", "runs", "results.json", "table.md", "table.csv", "README.md"} <= set(os.listdir(whole))
    names = {f"{method}-seed{seed}" for method in ("baseline", "dhm") for seed in (0, 1)}
    assert set(os.listdir(whole / "runs")) == names
    results = scores(whole)
    assert results["complete"]
    summary = {(row["arm"], row["branch"]): row for row in results["summary"]}
    assert set(summary) == {("baseline", "B0"), ("dhm", "B0"), ("dhm", "B2")}
    errors = [read_log(whole / "runs" / f"dhm-seed{seed}")[-1]["val_error/B0"] for seed in (0, 1)]
    assert summary["dhm", "B0"]["mean"] == pytest.approx(sum(errors) / 2)
    assert summary["dhm", "B0"]["difference"]["n"] == 2
    assert "| dhm | 2 |" in (whole / "table.md").read_text()


@pytest.mark.slow
def test_a_killed_comparison_called_again_gives_the_same_table(whole, tmp_path):
    """SIGKILL in the second epoch of the second run; the first is kept as it is, the second goes on."""
    folder = tmp_path / "comparison"
    assert stopped(signal.SIGKILL, 17, flags(folder)).returncode == -signal.SIGKILL
    kept = folder / "runs" / "baseline-seed0" / "log.jsonl"
    before = kept.stat().st_mtime_ns
    assert not (folder / "runs" / "dhm-seed0" / "network.safetensors").exists()
    assert main(flags(folder)) == 0
    assert kept.stat().st_mtime_ns == before
    assert scores(folder) == scores(whole)


@pytest.mark.slow
def test_ctrl_c_stops_in_order_and_says_how_to_go_on(whole, tmp_path):
    folder = tmp_path / "comparison"
    process = stopped(signal.SIGINT, 12, flags(folder))
    assert process.returncode == 128 + signal.SIGINT
    assert f"fastdhm compare --resume {folder}" in process.stdout
    assert "Traceback" not in process.stdout + process.stderr
    assert main(["compare", "--resume", str(folder)]) == 0
    assert scores(folder) == scores(whole)


def test_finished_runs_of_fastdhm_train_are_taken_as_they_are(whole, tmp_path, monkeypatch):
    """And what is finished is not trained again: no step is taken."""
    folder = tmp_path / "comparison"
    shutil.copytree(whole / "runs", folder / "runs")
    run_dir = folder / "runs" / "dhm-seed1"
    shutil.rmtree(run_dir)
    values = ["--method", "dhm", "--seed", "1", "--run-dir", str(run_dir), "--data-dir", str(tmp_path / "data")]
    assert main(["train", *TRAINING.split(), *MACHINE.split(), *values, "--log-every", "1"]) == 0
    train_no_more(monkeypatch)
    assert main(flags(folder)) == 0
    assert scores(folder) == scores(whole)


def test_more_seeds_and_methods_go_into_the_same_folder(whole, tmp_path, capsys):
    folder = tmp_path / "comparison"
    shutil.copytree(whole, folder)
    more = ["--methods", "baseline,dhm,dsl", "--seeds", "0,1,5", "--dry-run"]
    assert main(flags(folder, *more)) == 0
    text = capsys.readouterr().out
    assert "done: 4 of 9" in text and "dsl-seed5" in text and "to do" in text
    assert read_settings(folder) == read_settings(whole), "a dry run wrote"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lr", "0.3"], "other settings (lr: 0.1 -> 0.3)"),
        (["--methods", "dhm"], "methods without baseline"),
        (["--seeds", "0,7"], "seeds without 1, which is in it: --seeds 0,1,7 keeps all"),
        (["--methods", "baseline,dhm,x=dhm:lr=0.3", "--epochs", "3"], "epochs: 2 -> 3"),
        (["--subset", "20"], "subset: None -> 20"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_folder_with_other_settings_is_refused_and_they_are_named(whole, capsys, more, message):
    before = (whole / "compare.yaml").read_text()
    assert main(flags(whole, *more)) == 2
    error = capsys.readouterr().err
    assert message in error and f"--resume {whole}" in error
    assert (whole / "compare.yaml").read_text() == before


def test_a_run_of_another_config_in_its_place_is_refused(whole, tmp_path, capsys):
    folder = tmp_path / "comparison"
    (folder / "runs").mkdir(parents=True)
    shutil.copytree(whole / "runs" / "baseline-seed0", folder / "runs" / "baseline-seed1")
    assert main(flags(folder)) == 2
    assert "baseline-seed1 holds a run with other settings (seed: 0 -> 1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "dhm:colour=red"], "write METHOD:FIELD=VALUE"),
        (["--methods", "dhm:lr=fast"], "lr is fast: must be"),
        (["--methods", "baseline:direction=top-down"], "direction is top-down: baseline has no mimicking"),
        (["--seeds", "none"], "seeds is none"),
        (["--reference", "dsl"], "unknown reference 'dsl'"),
        (["--confidence", "95"], "confidence is 95"),
        (["--score", "mean"], "unknown score 'mean'"),
        (["--batch-size", "1000"], "1000"),
        (["--dataset", "folder:/nowhere"], "/nowhere"),
        (["--rows", "resnet32"], "rows is given without table"),
        (["--table", "1"], "methods and table are given"),
        (["--variants", "/nowhere.yaml"], "methods and variants are given"),
        (["--seed", "3"], "seed is given: a comparison has several"),
        (["--only", "dhm-seed0"], "only is given without resume"),
        (["--jobs", "some"], "jobs is some: must be a number"),
        (["--subset", "41"], "subset is 41: must be at least 10, one image for each class, and at most 40"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_before_anything_is_written(tmp_path, capsys, more, message):
    assert main(flags(tmp_path / "comparison", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "comparison").exists()


def test_going_on_with_other_methods_is_refused(whole, capsys):
    assert main(["compare", "--resume", str(whole), "--methods", "dsl"]) == 2
    assert "as they are, and --methods would change them: leave it out" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    assert main(flags(tmp_path)) == 2
    assert "is not a comparison of fastdhm" in capsys.readouterr().err


def test_a_run_that_another_process_makes_is_left_to_it(whole, tmp_path, capsys):
    """Two commands, on machines that share a drive, make different runs; the table says what is not there yet."""
    folder = tmp_path / "comparison"
    shutil.copytree(whole, folder)
    for name in ("dhm-seed1", "baseline-seed1"):
        shutil.rmtree(folder / "runs" / name)
    holding = "import sys; from pathlib import Path; from fastdhm.system.folders import held\n"
    holding += "with held(Path(sys.argv[1]), 'something', print): print('held', flush=True); sys.stdin.read()"
    program = [sys.executable, "-c", holding, str(folder / "runs" / "dhm-seed1")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert main(flags(folder)) == 0
        other.stdin.close()
    out = capsys.readouterr().out
    assert "left to another: something (process" in out
    assert "Not complete: 1 of 4 runs is not finished." in out
    assert [run["status"] for run in scores(folder)["runs"]] == ["finished"] * 3 + ["missing"]


def test_only_the_runs_that_are_named_are_made(whole, tmp_path):
    folder = tmp_path / "comparison"
    shutil.copytree(whole, folder)
    for name in ("dhm-seed1", "baseline-seed1"):
        shutil.rmtree(folder / "runs" / name)
    assert main(["compare", "--resume", str(folder), "--only", "dhm-seed1", "--device", "cpu"]) == 0
    assert [run["status"] for run in scores(folder)["runs"]] == ["finished", "finished", "missing", "finished"]
    assert read_settings(folder) == read_settings(whole)


def test_a_run_whose_loss_breaks_is_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    folder = tmp_path / "comparison"
    methods = ["--methods", "broken=baseline:lr=1e20,dhm", "--seeds", "1", "--epochs", "1"]
    assert main(flags(folder, *methods)) == 1
    results = scores(folder)
    assert [run["status"] for run in results["runs"]] == ["failed", "finished"]
    assert "not finite since step" in results["runs"][0]["failure"]
    table = (folder / "table.md").read_text()
    assert (
        "| broken | 0 of 1, 1 failed |" in table
        and "Failed, so not in any mean or pair: broken, seed 0: the loss is not finite" in table
    )
    train_no_more(monkeypatch)
    assert main(flags(folder, *methods)) == 1, "a failed run was tried again"


def test_settings_are_read_back_as_they_were(whole, tmp_path):
    comparison = read_settings(whole)
    write_settings(tmp_path, comparison)
    assert read_settings(tmp_path) == comparison


def test_results_can_be_written_anew_without_training(whole, tmp_path):
    folder = tmp_path / "comparison"
    shutil.copytree(whole, folder)
    (folder / "results.json").unlink()
    assert main(["compare", "--report-only", "--out", str(folder), "--score", "best", "--reference", "dhm"]) == 0
    results = scores(folder)
    assert results["score"] == "best"
    assert {row["reference"] for row in results["summary"]} == {"dhm"}
