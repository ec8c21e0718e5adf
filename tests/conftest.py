"""For every test: fresh memory is poisoned, threads are counted, and what needs a GPU says so where there is none."""

import os
import shutil
from pathlib import Path

import hypothesis
import pytest
import torch

from fastdhm.system import processors

hypothesis.settings.register_profile("fastdhm", deadline=None, print_blob=True)
hypothesis.settings.load_profile("fastdhm")

# numba reads it when it is imported. Half of what FFCV's loaders cost is the optimiser; the loaders' slow tests use it.
os.environ.setdefault("NUMBA_OPT", "0")

pytest.register_assert_rewrite(*(path.stem for path in (Path(__file__).parent / "helpers").glob("*.py")))

THREADS = processors.count()


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill what ``empty`` returns, in C++ too, with NaN (or the largest integer), so that reading it unwritten shows.

    torch does this in its deterministic mode only; operations that have no deterministic form warn and go on.
    """
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture(autouse=True)
def same_threads():
    """Start with a thread a processor; a test that leaves another number behind, as importing FFCV does, fails."""
    torch.set_num_threads(THREADS)
    yield
    left = torch.get_num_threads()
    assert left == THREADS, f"the test left torch with {left} threads instead of {THREADS}"


@pytest.fixture
def compiler():
    """For what torch.compile generates and compiles: skipped, with the reason, where there is no C++ compiler."""
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        pytest.skip(f"needs a C++ compiler; there is no {name}")


def pytest_addoption(parser):
    parser.addoption("--simd", help="have the C++ ops use this instruction set (avx2, avx512), where it is there")


def pytest_configure(config):
    name = config.getoption("--simd")
    if name:
        from fastdhm.ops import _extension

        _extension.require("--simd").set_simd(name)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip(f"needs a CUDA device; torch {torch.__version__} sees none")
