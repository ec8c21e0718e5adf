#!/bin/sh
# One prepared run on a machine with an NVIDIA GPU: builds, tests, times, trains, and writes a page to send.
# tools/gpu_check.sh --help says how.
exec "${PYTHON:-python3}" "$(dirname -- "$0")/gpu_check.py" "$@"
