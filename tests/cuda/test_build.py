"""What setup.py does with the CUDA toolkits that it meets: it builds without CUDA code, and says why, where it must."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdhm.ops import _extension

ROOT = Path(__file__).parents[2]
MAJOR = (torch.version.cuda or "0").split(".")[0]
SCRIPT = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {version}.0, V{version}.0.1" ;;
  *) echo "error: unsupported GNU version" >&2; exit 1 ;;
esac
"""

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="not in a checkout"),
    pytest.mark.skipif(torch.version.cuda is None, reason="this torch is a build without CUDA"),
]


def said_by_setup(environment):
    """What ``setup.py`` says when it sets up the extension, which it does before it looks at what it is to do."""
    command = [sys.executable, "setup.py", "--name"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stderr


def test_cuda_code_was_built_where_it_can_be():
    said = said_by_setup(os.environ)
    if "CUDA code is compiled by" not in said:
        pytest.skip(said.strip())
    if not _extension.available():
        pytest.skip(_extension.reason())
    info = _extension.require("this test").build_info()
    assert info["cuda"], "a toolkit serves, and the extension was built without it: build it again"


@pytest.mark.parametrize(
    ("version", "header", "message"),
    [
        pytest.param(
            None,
            True,
            f"there is no {{home}}/bin/nvcc; install a CUDA {MAJOR} toolkit and name its folder in CUDA_HOME",
            id="no-nvcc",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "9",
            True,
            f"{{home}}/bin/nvcc is of CUDA 9.0, torch of CUDA {torch.version.cuda}; install a CUDA {MAJOR}",
            id="other-version",
        ),
        pytest.param(MAJOR, False, "{home} has no include/cuda_runtime.h", id="no-headers", marks=pytest.mark.slow),
        pytest.param(
            MAJOR,
            True,
            "{home}/bin/nvcc fails: error: unsupported GNU version",
            id="nvcc-refuses",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_toolkit_that_does_not_serve_is_named(tmp_path, version, header, message):
    (tmp_path / "bin").mkdir()
    (tmp_path / "include").mkdir()
    if version is not None:
        (tmp_path / "bin" / "nvcc").write_text(SCRIPT.format(version=version))
        (tmp_path / "bin" / "nvcc").chmod(0o755)
    if header:
        (tmp_path / "include" / "cuda_runtime.h").touch()
    elif Path("/usr/include/cuda_runtime.h").is_file():
        pytest.skip("this system has the header in /usr/include")
    assert f"fastdhm: no CUDA code is compiled: {message.format(home=tmp_path)}" in said_by_setup(
        {"PATH": "/usr/bin:/bin", "CUDA_HOME": str(tmp_path)}
    )
