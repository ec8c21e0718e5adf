#!/bin/sh
# Check the type hints of fastdhm and of its tools by mypy. kernels/ and benchmarks/ are installed as parts of the package
# (see setup.py), and mypy knows a part by its place alone: build/types has each in its place, as a link.
# Usage: tools/types.sh [python]
set -eu
cd "$(dirname "$0")/.."
root=$PWD folder=build/types
python=$(command -v "${1:-python3}")
case $python in /*) ;; *) python=$root/$python ;; esac

rm -rf "$folder"
mkdir -p "$folder/fastdhm"
for part in fastdhm/*; do ln -s "$root/$part" "$folder/fastdhm"; done
ln -sfn "$root/kernels" "$root/benchmarks" "$folder/fastdhm"
ln -s "$root/tools" "$folder"

cd "$folder"
status=0
found=$("$python" -m mypy --config-file "$root/pyproject.toml" --cache-dir "$root/.mypy_cache" fastdhm tools) || status=$?
echo "$found" | sed -E 's#^fastdhm/(kernels|benchmarks)/#\1/#' # as the files lie
exit $status
