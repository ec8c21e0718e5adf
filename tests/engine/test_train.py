"""Whole runs: what they leave behind, how they stop, resume, fail and agree with `fastdhm eval`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fastdhm.cli import main
from fastdhm.data.loaders.build import pick_kind
from fastdhm.engine.saved import checkpoint
from fastdhm.engine.saved.checkpoint import load_checkpoint
from fastdhm.engine.saved.record import read_log
from fastdhm.engine.sums import TrainingSums
from runs import assert_same_state, command, rows_without_times

HAS_FFCV = pick_kind("auto")[0] == "ffcv"


STOPPED_FROM_INSIDE = """
import os, signal, sys
from fastdhm.cli import main
from fastdhm.engine.sums import TrainingSums

number, at_step = int(sys.argv[1]), int(sys.argv[2])
add = TrainingSums.add

def add_and_signal(self, step, *values):
    add(self, step, *values)
    if step == at_step:
        os.kill(os.getpid(), number)

TrainingSums.add = add_and_signal
sys.exit(main(sys.argv[3:]))
"""


def stopped(number: signal.Signals, at_step: int, arguments: list[str]) -> subprocess.CompletedProcess:
    """A run in a process of its own that gets the signal in its ``at_step``-th step: no race with a clock."""
    program = [sys.executable, "-c", STOPPED_FROM_INSIDE, str(int(number)), str(at_step)]
    return subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=300)


def stopped_here(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, at_step: int, arguments: list[str]) -> int:
    """The same in this process, which saves importing torch; returns the exit status."""
    add, handler = TrainingSums.add, signal.signal(signal.SIGINT, signal.default_int_handler)

    def add_and_signal(self, step, *values):
        add(self, step, *values)
        if step == at_step:
            os.kill(os.getpid(), number)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(TrainingSums, "add", add_and_signal)
            return main(arguments)
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of two epochs, logged at every step."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert main(command(run_dir, "--epochs", "2", "--log-every", "1")) == 0
    return run_dir


def test_a_run_directory_holds_what_the_readme_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.yaml", "log.jsonl", "tensorboard", "last.pt", "best.pt", "network.safetensors", "curves.png"
    }  # fmt: skip
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert (config["device"], config["precision"], config["compile"], config["loader"]) == (
        "cpu",
        "float32",
        "off",
        "torch",
    )
    assert any((finished / "tensorboard").iterdir())


def test_the_log_has_every_term_by_name(finished):
    rows = read_log(finished)
    steps, epochs = [r for r in rows if r["kind"] == "step"], [r for r in rows if r["kind"] == "epoch"]
    assert [row["step"] for row in steps] == list(range(1, 21))
    assert [row["epoch"] for row in epochs] == [1, 2]
    terms = {f"ce/B{m}" for m in range(3)} | {f"mimic/B{p}->B{q}" for p in range(3) for q in range(3) if p != q}
    assert terms <= steps[0].keys()
    assert {"val_error/B0", "val_top5_error/B2", "train_error/B1"} <= epochs[0].keys()
    assert all(row["images_per_s"] > 0 and 0 <= row["data_wait"] <= 1 for row in [*steps, *epochs])
    assert all(100 < row["peak_mib"] < 1e6 for row in [*steps, *epochs])


def test_dhm_learns_on_drawn_images(tmp_path):
    """Ten classes: a network that has learnt nothing is wrong 90% of the time. Two epochs end near the bound."""
    more = ["--dataset", "synthetic:320", "--batch-size", "32"]
    assert main(command(tmp_path / "run", *more, "--epochs", "5")) == 0
    assert read_log(tmp_path / "run")[-1]["val_error/B0"] < 60


def test_the_stripped_network_is_the_trunk_under_its_own_names(finished):
    saved = load_checkpoint(finished / "last.pt")["model"]
    network = load_file(finished / "network.safetensors")
    assert {f"trunk.{name}" for name in network} == {name for name in saved if name.startswith("trunk.")}
    assert all(torch.equal(tensor, saved[f"trunk.{name}"]) for name, tensor in network.items())


def test_eval_gives_the_runs_own_numbers_and_those_of_the_stripped_network(finished, capsys):
    assert main(["eval", str(finished), "--json", "--workers", "0"]) == 0
    results = json.loads(capsys.readouterr().out)
    last = read_log(finished)[-1]
    for m in range(3):
        assert results[f"B{m}"] == {"top1_error": last[f"val_error/B{m}"], "top5_error": last[f"val_top5_error/B{m}"]}
    assert results["network"] == results["B0"]
    assert main(["eval", str(finished / "network.safetensors"), "--json", "--workers", "0"]) == 0
    assert json.loads(capsys.readouterr().out) == {"network": results["B0"]}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """SIGKILL in the middle of the second epoch; the log is a step ahead of the checkpoint."""
    run_dir = tmp_path_factory.mktemp("killed") / "run"
    flags = ["--epochs", "2", "--log-every", "1", "--save-minutes", "1e-9"]
    assert stopped(signal.SIGKILL, 14, command(run_dir, *flags)).returncode == -signal.SIGKILL
    return run_dir


def test_a_killed_run_resumes_bit_for_bit(finished, killed, tmp_path):
    run_dir = Path(shutil.copytree(killed, tmp_path / "run"))
    assert load_checkpoint(run_dir / "last.pt")["position"]["step"] == 13
    assert main(["train", "--resume", str(run_dir)]) == 0
    assert_same_state(run_dir / "last.pt", finished / "last.pt")
    assert rows_without_times(run_dir) == rows_without_times(finished)
    seconds = [row["train_seconds"] for row in read_log(run_dir) if row["kind"] == "epoch"]
    assert 0 < seconds[0] < seconds[1] == load_checkpoint(run_dir / "last.pt")["train_seconds"]
    resumed, whole = (load_file(folder / "network.safetensors") for folder in (run_dir, finished))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_activations_computed_again_change_no_bit_and_can_be_chosen_at_a_resume(finished, tmp_path):
    run_dir = tmp_path / "run"
    assert main(command(run_dir, "--epochs", "2", "--log-every", "1", "--max-steps", "7")) == 0
    assert main(["train", "--resume", str(run_dir), "--activation-checkpointing", "true"]) == 0
    assert_same_state(run_dir / "last.pt", finished / "last.pt", same_best=False)
    assert rows_without_times(run_dir) == rows_without_times(finished)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(finished, killed, tmp_path):
    run_dir = Path(shutil.copytree(killed, tmp_path / "run"))
    for path in run_dir.glob("*.pt"):
        path.unlink()
    assert main(["train", "--resume", str(run_dir)]) == 0
    assert_same_state(run_dir / "last.pt", finished / "last.pt")


def saves_of(monkeypatch, train):
    """The checkpoints that are written in ``train``, as (file, step)."""
    save, saves = checkpoint.save_checkpoint, []

    def counted(path, config, classes, state):
        saves.append((path.name, state["position"]["step"]))
        save(path, config, classes, state)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_checkpoint", counted)
        train()
    return saves


def test_an_epoch_is_saved_before_its_validation_and_once_after_it(tmp_path, monkeypatch):
    saves = saves_of(monkeypatch, lambda: main(command(tmp_path / "run", "--epochs", "1")))
    assert saves == [("last.pt", 0), ("last.pt", 10), ("best.pt", 10), ("last.pt", 10)]


def test_a_stop_within_an_epoch_is_saved_once(tmp_path, monkeypatch):
    flags = command(tmp_path / "run", "--epochs", "1")
    assert saves_of(monkeypatch, lambda: stopped_here(monkeypatch, signal.SIGTERM, 4, flags)) == [
        ("last.pt", 0),
        ("last.pt", 4),
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_finishes_the_step_saves_and_says_how_to_resume(finished, tmp_path, monkeypatch, capsys, number):
    run_dir = tmp_path / "run"
    argv = command(run_dir, "--epochs", "2", "--log-every", "1")
    assert stopped_here(monkeypatch, number, 3, argv) == 128 + number
    out, err = capsys.readouterr()
    assert f"fastdhm train --resume {run_dir}" in out
    assert "Traceback" not in out + err
    assert load_checkpoint(run_dir / "last.pt")["position"]["step"] == 3
    assert main(["train", "--resume", str(run_dir)]) == 0
    assert_same_state(run_dir / "last.pt", finished / "last.pt")


def test_max_steps_ends_in_order_and_a_resume_goes_on(finished, tmp_path):
    run_dir = tmp_path / "run"
    assert main(command(run_dir, "--epochs", "2", "--log-every", "1", "--max-steps", "13")) == 0
    assert read_log(run_dir)[-1]["kind"] == "epoch"
    assert (run_dir / "network.safetensors").exists()
    assert main(["train", "--resume", str(run_dir)]) == 0
    assert_same_state(run_dir / "last.pt", finished / "last.pt", same_best=False)
    assert rows_without_times(run_dir) == rows_without_times(finished)


@pytest.mark.parametrize(
    "flags",
    [
        ["--sampler", "bernoulli", "--sample-every", "step", "--keep-prob", "0.6"],
        ["--sampler", "structural", "--branch-sets", "{B1+B2: 0.5, B2: 0.3, none: 0.2}"],
    ],
    ids=["bernoulli", "structural"],
)
def test_a_sampled_run_resumes_bit_for_bit(tmp_path, monkeypatch, flags):
    """The draws depend on where the run stands, not on how it came there."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = ["--dataset", "synthetic:80", "--batch-size", "8", "--epochs", "2", "--log-every", "1", *flags]
    assert main(command(whole, *flags)) == 0
    assert stopped_here(monkeypatch, signal.SIGTERM, 13, command(cut, *flags)) == 128 + signal.SIGTERM
    assert main(["train", "--resume", str(cut)]) == 0
    assert_same_state(cut / "last.pt", whole / "last.pt")
    assert rows_without_times(cut) == rows_without_times(whole)
    rows = [row for row in read_log(whole) if row["kind"] == "step"]
    with_b2 = [row for row in rows if "mimic/B2->B0" in row]
    assert 0 < len(with_b2) < len(rows)
    epoch = next(row for row in read_log(whole) if row["kind"] == "epoch")
    first = [row["mimic/B2->B0"] for row in with_b2 if row["step"] <= 10]
    assert epoch["mimic/B2->B0"] == pytest.approx(sum(first) / len(first))


def test_a_structural_run_can_be_written_in_a_file(tmp_path):
    (tmp_path / "run.yaml").write_text("sampler: structural\nbranch_sets:\n  B1: 0.5\n  none: 0.5\n")
    assert main(command(tmp_path / "run", "--config", str(tmp_path / "run.yaml"), "--max-steps", "5")) == 0
    row = read_log(tmp_path / "run")[-1]
    assert {"ce/B0", "ce/B1", "train_error/B1"} <= row.keys() and not {"ce/B2", "train_error/B2"} & row.keys()
    assert "val_error/B2" in row


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "dsl", "--direction", "top-down"], "direction is top-down: dsl has no mimicking"),
        (["--method", "baseline", "--sampler", "bernoulli"], "sampler is bernoulli: baseline has no mimicking"),
        (["--sampler", "structural", "--branch-sets", "{B1: 0.5, B9: 0.5}"], "unknown branch in the set 'B9'"),
        (["--sampler", "structural", "--branch-sets", "{B1: 0.5}"], "must be probabilities in [0, 1] that sum to 1"),
        (["--branch-sets", "{B1: 1.0}"], "must be left out: only structural uses it"),
        (["--sampler", "structural", "--keep-prob", "0.3"], "keep_prob is 0.3: must be left out: only bernoulli"),
        (["--sample-every", "step"], "sample_every is step: must be null: the binary sampler does not draw"),
        (["--sampler", "bernoulli", "--keep-prob", "1.2"], "keep_prob is 1.2: must be in [0, 1]"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_sampler_that_makes_no_sense_is_refused_before_anything_is_written(tmp_path, capsys, flags, message):
    assert main(command(tmp_path / "run", *flags)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_resuming_a_finished_run_changes_nothing(finished):
    before = (finished / "log.jsonl").read_text()
    assert main(["train", "--resume", str(finished)]) == 0
    assert (finished / "log.jsonl").read_text() == before


@pytest.mark.skipif(not HAS_FFCV, reason="FFCV is not installed")
def test_both_loaders_train_the_same_network(tmp_path):
    """Drawn images need no resizing, so both feed the same bytes."""
    for kind, workers in (("torch", "2"), ("ffcv", "1")):
        flags = ["--loader", kind, "--workers", workers, "--epochs", "1"]
        assert main(command(tmp_path / kind, *flags)) == 0
    assert_same_state(tmp_path / "torch" / "last.pt", tmp_path / "ffcv" / "last.pt")


def test_the_other_flags_work_together(tmp_path):
    flags = "--method dsl --branches [B2] --accumulate 4 --clip-grad 1 --decay-norm-bias false --keep best --epochs 1"
    flags += " --precision bfloat16 --label-smoothing 0.1 --schedule cosine --flip true --max-steps 4"
    flags += " --nesterov true --progressive 0.3"
    assert main(command(tmp_path / "run", *flags.split())) == 0
    row = read_log(tmp_path / "run")[-1]
    assert {name for name in row if name.startswith(("ce/", "mimic/"))} == {"ce/B0", "ce/B2"}
    assert {"val_error/B0", "val_error/B2", "train_error/B2"} <= row.keys()


def test_accumulation_gives_the_same_gradient(tmp_path):
    """Without batch statistics in play it is the same sum; here they are, so only the first loss agrees closely."""
    losses = []
    for parts in ("1", "2"):
        assert main(command(tmp_path / parts, "--accumulate", parts, "--max-steps", "1", "--log-every", "1")) == 0
        losses.append(next(row["ce/B0"] for row in read_log(tmp_path / parts) if row["kind"] == "step"))
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_step_trains_as_the_eager_one(tmp_path):
    for name in ("off", "on"):
        flags = ["--compile", name, "--deterministic", "true", "--branches", "B2"]  # compiled from the first step on
        assert main(command(tmp_path / name, *flags, "--max-steps", "3", "--log-every", "1")) == 0
    logs = [[row["loss"] for row in read_log(tmp_path / n) if row["kind"] == "step"] for n in ("off", "on")]
    assert len(logs[0]) == 3 and logs[1] == pytest.approx(logs[0], rel=2e-3)


def test_a_loss_that_breaks_stops_the_run_and_names_step_term_and_checkpoint(tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert main(command(run_dir, "--lr", "1e20", "--log-every", "1", "--epochs", "2")) == 2
    message = capsys.readouterr().err
    assert "not finite since step" in message and "ce/B0" in message and str(run_dir / "last.pt") in message
    assert all(tensor.isfinite().all() for tensor in load_checkpoint(run_dir / "last.pt")["model"].values())


def test_a_broken_loss_between_log_points_is_not_saved_over_the_good_checkpoint(tmp_path):
    run_dir = tmp_path / "run"
    assert main(command(run_dir, "--lr", "1e20", "--log-every", "1000", "--epochs", "2")) == 2
    assert load_checkpoint(run_dir / "last.pt")["position"]["step"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epochs 3", "holds a run with another config (epochs: 2 -> 3)"),
        ("--epochs 2", "holds a run with this config"),
    ],
)
def test_an_existing_run_directory_is_refused(finished, capsys, flags, message):
    assert main(command(finished, "--log-every", "1", *flags.split())) == 2
    error = capsys.readouterr().err
    assert message in error and f"--resume {finished}" in error


def test_a_directory_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    assert main(command(tmp_path / "mine")) == 2
    assert "is not a run of fastdhm" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_directory_that_cannot_be_made_is_refused_before_the_data_is_touched(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastdhm.engine.train.open_data", lambda *_: pytest.fail("the data was opened"))
    (tmp_path / "file").write_text("precious")
    assert main(command(tmp_path / "file" / "run")) == 2
    assert f"and {tmp_path / 'file'} is not a folder: choose another" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda *_: False)  # a read-only disk; permissions do not bind a superuser
    assert main(command(tmp_path / "new" / "run")) == 2
    assert f"and {tmp_path} cannot be written to: choose another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lr 0.3", "lr: 0.1 -> 0.3"),
        ("--arch resnet14", "arch: resnet8 -> resnet14"),
        ("--epochs 4", "its steps so far would have had another"),
    ],
)
def test_a_resume_that_would_change_the_run_is_refused(finished, capsys, flags, message):
    assert main(["train", "--resume", str(finished), *flags.split()]) == 2
    assert message in capsys.readouterr().err


def test_resuming_what_is_no_run(tmp_path, capsys):
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "is not a run of fastdhm" in capsys.readouterr().err


def test_a_checkpoint_of_another_architecture_is_refused(finished, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert main(command(run_dir, "--arch", "resnet14", "--max-steps", "1")) == 0
    os.replace(run_dir / "last.pt", tmp_path / "kept.pt")
    (run_dir / "last.pt").write_bytes((finished / "last.pt").read_bytes())
    assert main(["train", "--resume", str(run_dir)]) == 2
    assert "is not what last.pt was trained with (arch: resnet8 -> resnet14" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["nowhere", "nowhere.pt", "nowhere.safetensors"])
def test_eval_of_what_is_not_there(tmp_path, capsys, path):
    assert main(["eval", str(tmp_path / path)]) == 2
    assert "is not there" in capsys.readouterr().err


def test_batch_larger_than_the_data(tmp_path, capsys):
    assert main(command(tmp_path / "run", "--batch-size", "1000")) == 2
    error = capsys.readouterr().err
    assert "1000" in error and "80 or less" in error
    assert not (tmp_path / "run").exists(), "a run that never began left a directory"


def test_the_fused_ops_train_as_the_eager_ones(tmp_path):
    """Over an epoch the losses and every term agree within what float32 rounding grows to, norms fused too."""
    logs, large = [], ["--dataset", "synthetic:320", "--batch-size", "32"]  # rounding grows faster in small batches
    for impl in ("eager", "auto"):
        folder = tmp_path / impl
        assert main(command(folder / "run", *large, "--impl", impl, "--epochs", "1", "--log-every", "1")) == 0
        logs.append([row for row in read_log(folder / "run") if row["kind"] == "step"])
    eager, fused = logs
    assert len(eager) == 10 and "mimic/B1->B2" in eager[0] and "ce/B0" in eager[0]
    for one, other in zip(eager, fused, strict=True):
        terms = [name for name in one if name.startswith(("loss", "ce/", "mimic/"))]
        assert [one[name] for name in terms] == pytest.approx([other[name] for name in terms], rel=1e-2, abs=1e-3)
