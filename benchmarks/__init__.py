"""Benchmarks behind ``fastdhm bench``: one file for each question.

Ops: loss, linear (with the heads), mask, conv, norm, reid. Training: step, epoch (with agreement of the losses),
accuracy, loader, startup, scale.
kernel_report writes ``docs/kernels.md``. harness: what checks, times and reports. reference: what is measured against.
"""

import os

# Read when a BLAS library is loaded, so before torch and numpy are: a processor forced by the shell is not the one
# that is measured.
os.environ.pop("OPENBLAS_CORETYPE", None)
# torch reads this when it is loaded: its profiler warns of every block that is older than itself.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
# Development versions of torch print a line each time the profiler starts.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
