"""The kernels without a GPU: their tests through Triton's interpreter, their compilation ahead of time.

Triton reads TRITON_INTERPRET when it is imported, and other tests need it unset: so both run in their own processes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, **environment):
    result = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if "only 0-dimensional arrays can be converted" in result.stdout:
        pytest.skip("this triton's interpreter reads numbers in a way that this numpy refuses (3.6 with numpy 2.5)")
    assert result.returncode == 0, f"{' '.join(map(str, command))} failed:\n{result.stdout}"
    return result.stdout


@pytest.mark.slow
def test_kernels_through_the_interpreter():
    output = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/test_mimic_loss.py", TRITON_INTERPRET="1"
    )
    assert " passed" in output and "skipped" not in output


@pytest.mark.slow
def test_kernels_compile_without_spills(tmp_path):
    run("benchmarks/kernel_report.py", "--first", "--output", tmp_path / "kernels.md", TRITON_INTERPRET="0")
    page = (tmp_path / "kernels.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| 3 x 1000")]
    assert [int(row[5]) <= 8 for row in rows] == [True], "two registers more would leave room for a program less"
