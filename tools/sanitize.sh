#!/bin/sh
# The tests of the C++ ops under AddressSanitizer and UndefinedBehaviorSanitizer: odd shapes, odd strides and empty
# tensors may read or write nothing that is not theirs. CPU code only; an extension of its own in build/sanitize.
# Usage: tools/sanitize.sh [python] [arguments of pytest]
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}
[ $# -eq 0 ] || shift
folder=$PWD/build/sanitize
flags="-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all"

# CUDA_HOME: no toolkit, no CUDA code
CUDA_HOME=/nonexistent FASTDHM_CXXFLAGS="-O1 -g1 -fno-omit-frame-pointer $flags" LDFLAGS="$flags" "$python" setup.py --quiet \
    build --build-base "$folder/made" --build-lib "$folder/package"

# Both have to be there before Python: the one replaces malloc, the other is what it wraps for exceptions.
compiler=${CXX:-c++}
preload="$($compiler -print-file-name=libasan.so) $($compiler -print-file-name=libstdc++.so)"
[ $# -gt 0 ] || set -- tests/ops tests/reid
# -P: the package that was built here, not the one of the current folder
LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH="$folder/package" \
    PYTHONSAFEPATH=1 "$python" -m pytest -q -m "not slow" -p no:cacheprovider "$@"
