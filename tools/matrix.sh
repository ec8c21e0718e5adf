#!/bin/bash
# Run the tests on other machines than this one, as far as one machine can play them: other Pythons and torches, older
# instruction sets, no extension, no compiler, one processor. Each row installs a copy of this tree as a user would.
#
#   tools/matrix.sh               every row, all tests (hours)
#   tools/matrix.sh --quick       every row, the tests that differ by machine (what .ci/run does)
#   tools/matrix.sh oldest avx2   these rows
#   tools/matrix.sh --list        the rows
#   tools/matrix.sh --minutes 30  begin no row after that, and end the one at work: what is not run is said
#
# MATRIX_DIR (default build/matrix) keeps the environments: 6 GB each for a row with a torch of its own. A row that fails
# does not stop the next; the exit status is 1 if one failed. A row is said and left out where its Python is not here, the
# disk is too full for its torch, or torch or the build tools do not download in three tries.
set -u
cd "$(dirname "$0")/.." || exit 1
top=$PWD
work=$(realpath -m "${MATRIX_DIR:-build/matrix}")

# row | Python | torch and torchvision to install (-: those of .venv) | what is special; the most telling first
ROWS="
no-extension | -    | -                                  | built where no compiler is
oldest       | 3.10 | torch==2.6.0 torchvision==0.21.0   | the oldest torch and Python that are claimed
avx2         | -    | -                                  | the C++ ops by AVX2, torch and oneDNN too
one-core     | -    | -                                  | one processor
newest       | 3.13 | torch torchvision                  | the newest of both
no-compiler  | -    | -                                  | built, but no compiler where it runs
middle       | 3.12 | torch==2.11.0 torchvision==0.26.0  | a torch between
"
# What differs by machine: ops, numerics, loaders, processes. The rest is logic, which .venv's run has covered.
QUICK="tests/test_house.py tests/cli tests/ops tests/kernels tests/cuda tests/data tests/models tests/reid
tests/engine/test_step.py tests/engine/test_device.py tests/engine/optim/test_optimizer.py tests/engine/saved/test_checkpoint.py"

quick="" wanted="" seconds=1000000
while [ $# -gt 0 ]; do
    argument=$1
    shift
    case "$argument" in
        --quick) quick=yes ;;
        --minutes) seconds=$((60 * $1)); shift ;;
        --list) echo "$ROWS"; exit 0 ;;
        -*) echo "matrix: unknown option $argument; see the head of tools/matrix.sh" >&2; exit 2 ;;
        *)  echo "$ROWS" | grep -q "^$argument " || { echo "matrix: no row '$argument'; --list shows them" >&2; exit 2; }
            wanted="$wanted $argument " ;;
    esac
done

find_python() { # VERSION: the path of such an interpreter, or nothing
    local found
    for found in "$HOME"/.pyenv/versions/"$1".*/bin/python "$(command -v "python$1")"; do
        [ -x "$found" ] && { echo "$found"; return; }
    done
}

thrice() { # COMMAND: downloads break
    "$@" || { sleep 10 && "$@"; } || { sleep 30 && "$@"; }
}

# Make $work/ROW/venv with fastdhm of a fresh clone in it. Status 2: torch or the build tools could not be had.
install() { # ROW PYTHON TORCH
    local row=$1 python=$2 torch=$3 folder="$work/$1"
    local pip=(thrice "$folder/venv/bin/python" -m pip install --quiet)
    rm -rf "$folder/src" && mkdir -p "$folder/src" || return 1
    tar -C "$top" --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./bench --exclude=./runs \
        --exclude='*.so' -cf - . | tar -C "$folder/src" -xf - || return 1
    [ "$torch" != - ] || python="$top/.venv/bin/python"
    [ -x "$folder/venv/bin/python" ] || "$python" -m venv "$folder/venv" || return 1
    # shellcheck disable=SC2086 # words are meant to split
    "${pip[@]}" --upgrade "setuptools>=77" wheel ninja ${torch#-} || return 2
    if [ "$torch" = - ]; then # on top of .venv, whose libraries it sees and whose fastdhm it does not
        "$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
            > "$(echo "$folder"/venv/lib/python*/site-packages)/base.pth"
        pip+=(--no-deps)
    fi
    [ "$row" != no-extension ] || export CXX=no-such-compiler
    # CUDA code is compiled in .venv; here it would only take time
    CUDA_HOME=/nonexistent "${pip[@]}" --no-build-isolation --editable "$folder/src[test]" || return 1
    unset CXX
    if [ "$torch" != - ] && pkg-config --exists opencv4 libturbojpeg; then
        "${pip[@]}" "ffcv>=1.0.2" || echo "matrix: $row: FFCV could not be built, its tests are skipped"
    fi
}

test_row() { # ROW SECONDS
    local folder="$work/$1" tests="tests" before="" options=() python="$work/$1/venv/bin/python"
    [ -z "$quick" ] || tests=$QUICK
    cd "$folder/src" || return 1
    "$python" tools/build_report.py
    case $1 in
        no-compiler) export CXX=no-such-compiler ;;
        avx2) export ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2; options=(--simd avx2) ;;
        one-core) before="taskset -c $(taskset -pc $$ | sed 's/.*: *//; s/[-,].*//')" ;;
    esac
    # a process and a thread for each processor, as in `make test`
    # shellcheck disable=SC2086 # words are meant to split
    options+=(-n "$($before "$python" -c "from fastdhm.system import processors; print(processors.count())")")
    # shellcheck disable=SC2086
    CUDA_HOME=/nonexistent OMP_NUM_THREADS=1 timeout --kill-after 20 "$2" $before "$python" -m pytest $tests -q -p no:cacheprovider \
        --dist loadfile ${quick:+-m "not slow"} "${options[@]}"
}

leave_out() { # WHY: of the row at hand
    echo "matrix: $row NOT RUN: $1"
    echo "| $row | $version | $torch | not run: $1 | |" >> "$report"
}

mkdir -p "$work"
report="$work/report.md"
echo "| row | Python | torch | result | seconds |" > "$report"
echo "|---|---|---|---|---|" >> "$report"
status=0
while IFS='|' read -r row version torch what; do
    read -r row <<< "$row"; read -r version <<< "$version"; read -r torch <<< "$torch" # without the blanks around
    [ -n "$row" ] || continue
    [ -z "$wanted" ] || [[ $wanted == *" $row "* ]] || continue
    started=$SECONDS log="$work/$row.log" python=""
    if [ "$version" != - ]; then
        python=$(find_python "$version")
        if [ -z "$python" ]; then
            leave_out "there is no Python $version here"
            continue
        fi
    fi
    if [ $SECONDS -ge $seconds ]; then
        leave_out "the time is over"
        continue
    fi
    free=$(df --output=avail -BG "$work" | tail -n 1 | tr -dc 0-9)
    if [ "$torch" != - ] && [ ! -d "$work/$row/venv" ] && [ "$free" -lt 12 ]; then # what pip downloads and what it unpacks
        leave_out "its torch needs 12 GB of disk, $free GB are free in $work"
        continue
    fi
    echo "matrix: $row:$what (log: $log)"
    (install "$row" "$python" "$torch") > "$log" 2>&1 < /dev/null
    installed=$?
    if [ $installed = 2 ]; then
        tail -n 5 "$log"
        leave_out "pip could not install torch, or what builds fastdhm"
        continue
    elif [ $installed = 0 ]; then
        (test_row "$row" $((seconds > SECONDS ? seconds - SECONDS : 1))) >> "$log" 2>&1 < /dev/null
        case $? in
            0) result=passed ;;
            124) result="cut by the time" ;;
            *) result=FAILED status=1 ;;
        esac
        summary="$result: $(grep -E '[0-9]+ (passed|failed|error)' "$log" | tail -n 1)"
    else
        tail -n 20 "$log"
        summary="FAILED to install" status=1
    fi
    grep -E '^(FAILED|ERROR) ' "$log"
    echo "matrix: $row $summary"
    found=$("$work/$row/venv/bin/python" -c "import platform, torch; print(platform.python_version(), '|', torch.__version__)" \
        2> /dev/null || echo "$version | $torch")
    echo "| $row | $found | $summary | $((SECONDS - started)) |" >> "$report"
done <<< "$ROWS"
cat "$report"
exit $status
