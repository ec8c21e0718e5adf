"""Whole runs for tests: the command of a small one, and whether two of them are the same."""

from pathlib import Path

import torch

from fastdhm.engine.saved.checkpoint import load_checkpoint
from fastdhm.engine.saved.record import read_log

# 80 images, 10 batches an epoch, float32: the same on every machine of the tests
FLAGS = "--dataset synthetic:80 --arch resnet8 --batch-size 8 --device cpu --precision float32 --compile off"


def command(run_dir: Path, *flags: str) -> list[str]:
    folders = ["--run-dir", str(run_dir), "--data-dir", str(run_dir.parent / "data")]
    return ["train", *FLAGS.split(), "--loader", "torch", "--workers", "0", *folders, *flags]


def assert_same_state(one: Path, other: Path, *, same_best: bool = True) -> None:
    """Checkpoints agree in every bit of what was learnt and of where the run stands; without ``same_best`` not in the
    best error so far: a run cut by ``max_steps`` validates once more, which counts."""
    a, b = load_checkpoint(one), load_checkpoint(other)
    for part in ("model", "optimizer", "scaler", "rng", "sums"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0, equal_nan=True)
    unlike = () if same_best else ("best_error", "best_epoch")
    stands = [{name: value for name, value in each["position"].items() if name not in unlike} for each in (a, b)]
    assert stands[0] == stands[1]


def rows_without_times(run_dir: Path) -> list[dict]:
    timed = ("images_per_s", "data_wait", "process_seconds", "train_seconds", "val_seconds", "peak_mib")
    rows = [row for row in read_log(run_dir) if row["kind"] != "startup"]  # one a process
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]
