"""Benchmarks behind ``fastdhm bench``: one file for each question, over one harness."""

import os

# Read when a BLAS library is loaded, so before torch and numpy are: a processor forced by the shell is not the one
# that is measured.
os.environ.pop("OPENBLAS_CORETYPE", None)
