"""What ends a run from outside: its state is saved, the error is one line, and a resume ends where an undisturbed run
would."""

import errno
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdhm.cli import main
from fastdhm.data.sources.folder import FolderSource
from fastdhm.engine import compiling
from fastdhm.engine import train as training
from fastdhm.engine.saved import checkpoint
from fastdhm.engine.saved.checkpoint import load_checkpoint
from runs import assert_same_state

FLAGS = "--arch resnet8 --method baseline --epochs 2 --batch-size 8 --device cpu --precision float32 --compile off"


def make_pictures(root: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels_HWC = random.integers(0, 256, (36, 36, 3), np.uint8)
                Image.fromarray(pixels_HWC).save(root / split / name / f"{i:02}.png")
    return root


def train(root: Path, run_dir: Path, *flags: str) -> int:
    folders = ["--data-dir", str(run_dir.parent / "data"), "--run-dir", str(run_dir)]
    loader = ["--loader", "torch", "--workers", "0"]
    return main(["train", "--dataset", f"folder:{root}", *FLAGS.split(), *loader, *folders, *flags])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The pictures, and a run on them that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train(make_pictures(folder / "pictures"), folder / "run") == 0
    return folder / "pictures", folder / "run"


def disturb(monkeypatch, at_read: int, act):
    """Do ``act`` when an image is read for the ``at_read``-th time since training began: some are looked at before."""
    image, begin, reads, training_began = FolderSource.image, training.stop_signals, [], []

    def begun():
        training_began.append(True)
        return begin()

    def watched(source, i, *more):
        reads.extend([i] * len(training_began))
        if training_began and len(reads) == at_read:
            act()
        return image(source, i, *more)

    monkeypatch.setattr(training, "stop_signals", begun)
    monkeypatch.setattr(FolderSource, "image", watched)


# of 32 training and 8 validation images an epoch: in the first step, between two, in both validations
@pytest.mark.parametrize(("at_read", "step"), [(3, 0), (20, 2), (35, 4), (60, 6), (78, 8)])
def test_data_that_goes_away_costs_no_step(undisturbed, tmp_path, monkeypatch, capsys, at_read, step):
    pictures, whole = undisturbed
    away = pictures.with_name("away")
    disturb(monkeypatch, at_read, lambda: pictures.rename(away))
    try:
        assert train(pictures, tmp_path / "run") == 2
    finally:
        away.rename(pictures)
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"fastdhm: error: {pictures}/.*\n", err)
    assert f"of step {step}, with: fastdhm train --resume {tmp_path / 'run'}" in out
    assert load_checkpoint(tmp_path / "run" / "last.pt")["position"]["step"] == step
    monkeypatch.undo()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert_same_state(tmp_path / "run" / "last.pt", whole / "last.pt")


def test_a_disk_that_is_full_when_the_data_goes_leaves_the_last_checkpoint(undisturbed, tmp_path, monkeypatch, capsys):
    pictures, whole = undisturbed

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def both():
        monkeypatch.setattr("os.replace", full)
        raise OSError(errno.EIO, "Input/output error")

    disturb(monkeypatch, 20, both)
    assert train(pictures, tmp_path / "run") == 2
    out, err = capsys.readouterr()
    assert "the disk failed" in err and len(err.splitlines()) == 1
    assert "of step 0, with" in out
    monkeypatch.undo()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert_same_state(tmp_path / "run" / "last.pt", whole / "last.pt")


@pytest.mark.parametrize("kind", ["no process", "killed", "stuck"])
def test_a_compiler_that_cannot_start_dies_or_hangs_costs_the_run_nothing(
    undisturbed, tmp_path, monkeypatch, capsys, kind
):
    class Child:
        def __init__(self, run):
            if kind == "no process":
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
            self.output = run.dir / "compile.log"

        def ended(self):
            return -9 if kind == "killed" else None

        def close(self):
            pass

    says = {"no process": "cannot be started (Resource", "killed": "was killed", "stuck": "was not done in 0 minutes"}
    monkeypatch.setenv("CXX", "sh")  # looked for, and not called
    monkeypatch.setattr(compiling, "Child", Child)
    monkeypatch.setattr(compiling, "LIMIT_S", 0)
    pictures, whole = undisturbed
    assert train(pictures, tmp_path / "run", "--compile", "on") == 0
    assert "the step stays uncompiled: " in (out := capsys.readouterr().out) and says[kind] in out
    assert_same_state(tmp_path / "run" / "last.pt", whole / "last.pt")


def test_a_best_checkpoint_that_could_not_be_written_once_is_written_by_the_resumed_run(
    undisturbed, tmp_path, monkeypatch, capsys
):
    pictures, whole = undisturbed
    save, failed = checkpoint.save_checkpoint, []

    def fails_once(path, *args):
        if path.name == "best.pt" and not failed:
            failed.append(path)
            raise OSError(errno.EDQUOT, "Disk quota exceeded", str(path))
        save(path, *args)

    monkeypatch.setattr(checkpoint, "save_checkpoint", fails_once)
    assert train(pictures, tmp_path / "run") == 2
    assert "no space left in the quota" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    for name in ("best.pt", "last.pt"):
        assert_same_state(tmp_path / "run" / name, whole / name)


def test_a_step_that_fails_half_way_is_made_again_from_the_last_whole_state(undisturbed, tmp_path, monkeypatch):
    pictures, whole = undisturbed
    make_step, calls = training.make_step, []

    def failing(*args):
        step = make_step(*args)

        def once(*given):
            values = step(*given)
            calls.append(values)
            if len(calls) == 3:
                raise OSError(errno.EIO, "a cache of compiled code that cannot be read")
            return values

        return once

    monkeypatch.setattr(training, "make_step", failing)
    assert train(pictures, tmp_path / "run") == 2
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert_same_state(tmp_path / "run" / "last.pt", whole / "last.pt")
