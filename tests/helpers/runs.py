"""Whole runs for tests: the command of a small one, and whether two of them are the same."""

from pathlib import Path

import torch

from fastdhm.engine.checkpoint import load_checkpoint
from fastdhm.engine.record import read_log

# 80 images, 10 batches an epoch, float32: the same on every machine of the tests
FLAGS = "--dataset synthetic:80 --arch resnet8 --batch-size 8 --device cpu --precision float32 --compile off"


def command(run_dir: Path, *flags: str) -> list[str]:
    folders = ["--run-dir", str(run_dir), "--data-dir", str(run_dir.parent / "data")]
    return ["train", *FLAGS.split(), "--loader", "torch", "--workers", "0", *folders, *flags]


def assert_same_state(one: Path, other: Path) -> None:
    """Checkpoints agree in every bit of what was learnt and of where the run stands."""
    a, b = load_checkpoint(one), load_checkpoint(other)
    for part in ("model", "optimizer", "scaler", "rng", "sums"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0, equal_nan=True)
    assert a["position"] == b["position"]


def rows_without_times(run_dir: Path) -> list[dict]:
    timed = ("images_per_s", "data_wait", "process_seconds", "train_seconds", "val_seconds", "peak_mib")
    rows = [row for row in read_log(run_dir) if row["kind"] != "startup"]  # one a process
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]
