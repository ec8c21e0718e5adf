#!/bin/sh
# The tests of the C++ ops under AddressSanitizer and UndefinedBehaviorSanitizer: odd shapes, odd strides and empty
# tensors may read or write nothing that is not theirs. CPU code only, in a package of its own in build/sanitize.
# Usage: tools/sanitize.sh [python] [arguments of pytest, with whole paths]
set -eu
cd "$(dirname "$0")/.."
root=$PWD folder=$PWD/build/sanitize
python=$(command -v "${1:-python3}")
case $python in /*) ;; *) python=$root/$python ;; esac
[ $# -eq 0 ] || shift
flags="-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all"

# CUDA_HOME: no toolkit, no CUDA code
CUDA_HOME=/nonexistent FASTDHM_CXXFLAGS="-O1 -g1 -fno-omit-frame-pointer $flags" LDFLAGS="$flags" \
    "$python" setup.py --quiet build --build-base "$folder/made" --build-lib "$folder/package"

# Both have to be there before Python: the one replaces malloc, the other is what it wraps for exceptions.
compiler=${CXX:-c++}
preload="$($compiler -print-file-name=libasan.so) $($compiler -print-file-name=libstdc++.so)"
export LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH="$folder/package"
cd "$folder/package"  # Python looks in the current folder first
"$python" -c 'import torch, fastdhm._C; print("sanitized:", fastdhm._C.__file__)'
[ $# -gt 0 ] || set -- ../../../tests/ops ../../../tests/reid  # pytest takes no brackets in a path
processors=$("$python" -c "from fastdhm.system import processors; print(processors.count())")
"$python" -m pytest -n "$processors" --dist loadfile -q -m "not slow" -p no:cacheprovider -c "$root/pyproject.toml" --rootdir "$root" "$@"
