#!/bin/sh
# What a GPU makes of this project, on a machine where nothing can be fetched.
#
#   sh scripts/gpu_check.sh prepare          here: packages and text into .gpu/ (ignored by git; it travels with the tree)
#   sh scripts/gpu_check.sh run FOLDER [...] there: installs them aside and runs python -m benchmarks.gpu --out FOLDER
#
# There: Python 3.12, PyTorch, Triton, Transformers, PEFT and pytest. Here: a Python with pip, which asks where pip asks.
# The results are JSON, a file a part, whole at every moment. One command there has ten minutes as a rule, of which
# benchmarks.gpu takes 570 s; what it did not reach is run by a second one: run FOLDER --parts 5.
set -eu
cd "$(dirname "$0")/.."
carried=.gpu
limit=64 # MiB that travel at a time, the tree included

prepare() {
  python="${PYTHON:-.venv/bin/python}"
  [ -x "$python" ] || python=python3
  mkdir -p "$carried/text"
  rm -rf "$carried/wheels"
  pins="$carried/pins.txt"
  grep -E '^(pydantic|pydantic-core|annotated-types|typing-extensions|typing-inspection|hypothesis|sortedcontainers)==' \
    requirements-cpu.lock >"$pins"
  # Wheels for that machine, not for this one; the two others bring nothing but themselves.
  { cat "$pins"; echo liger-kernel; echo cut-cross-entropy; } | while read -r package; do
    "$python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: \
      --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
      --platform manylinux2014_x86_64 --dest "$carried/wheels" "$package"
  done
  data="${FORTIFAI_DATA:-../shared/data}/wikitext-2"
  if [ -d "$data" ]; then cp "$data"/*.txt "$carried/text/"; else echo "no text at $data: part 5 takes Python's own" >&2; fi
  size=$({ git ls-files -z && find "$carried" -type f -print0; } | du -cm --files0-from=- | tail -n 1 | cut -f1)
  [ "$size" -lt "$limit" ] || { echo "the tree and $carried have $size MiB: more than the $limit that travel" >&2; exit 1; }
  echo "$carried is ready, with the tree $size MiB. There: sh scripts/gpu_check.sh run FOLDER"
}

run() {
  out="$1"
  shift
  python="${PYTHON:-python3}"
  site="${TMPDIR:-/tmp}/fortifai-site"
  "$python" -m pip --disable-pip-version-check install --quiet --no-index --no-deps --no-cache-dir --upgrade \
    --target "$site" "$carried"/wheels/*.whl
  PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 exec "$python" -m benchmarks.gpu --out "$out" "$@"
}

case "${1:-}" in
  prepare) prepare ;;
  run)
    [ $# -ge 2 ] || { echo "run: name the folder of the results" >&2; exit 2; }
    ls "$carried"/wheels/*.whl >/dev/null 2>&1 || {
      echo "run: no packages in $carried/wheels: first sh scripts/gpu_check.sh prepare, where pip has an index" >&2
      exit 2
    }
    shift
    run "$@"
    ;;
  *)
    echo "usage: sh scripts/gpu_check.sh prepare | run FOLDER [--parts 1,2] [--scale toy]" >&2
    exit 2
    ;;
esac
