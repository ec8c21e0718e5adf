"""What a run does before its first step, and what it leaves until later."""

import subprocess
import sys

import pytest

from fastdhm.engine.saved.record import read_log

# What takes seconds to import, and an uncompiled run of a small network on images in memory has no use for.
SLOW = ("torch._dynamo", "torch._inductor", "torchvision", "sympy", "ffcv", "numba", "cv2", "matplotlib", "tensorboard")
PROGRAM = """
import sys
from fastdhm.cli import main
from fastdhm.engine.sums import TrainingSums

add = TrainingSums.add

def note(self, step, *values):
    add(self, step, *values)
    if step == 1:
        print("loaded:", *(name for name in {slow} if name in sys.modules))

TrainingSums.add = note
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param("", id="as they are"),
        pytest.param(
            "--optimizer amsgrad --nesterov false --clip-grad 1 --accumulate 2", id="others", marks=pytest.mark.slow
        ),
    ],
)
def test_the_first_step_waits_for_no_needless_import(tmp_path, flags):
    base = (
        "train --dataset synthetic:64 --arch resnet8 --batch-size 16 --image-size 32 --compile off --device cpu "
        "--log-every 1"
    )
    folders = ["--run-dir", str(tmp_path / "run"), "--data-dir", str(tmp_path / "data")]
    command = [
        sys.executable,
        "-c",
        PROGRAM.format(slow=SLOW),
        *base.split(),
        "--max-steps",
        "2",
        *folders,
        *flags.split(),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert [line for line in ended.stdout.splitlines() if line.startswith("loaded:")] == ["loaded:"]
    row, *steps = read_log(tmp_path / "run")
    assert (row["kind"], row["step"], row["epoch"]) == ("startup", 1, 0)
    assert 0 < row["startup_seconds"] < 300
    steps = [step for step in steps if step["kind"] == "step"]
    assert len(steps) == 2
    assert all(0 <= step["data_wait"] <= 1 for step in steps)
    assert row["startup_seconds"] < steps[0]["process_seconds"] < steps[1]["process_seconds"]
