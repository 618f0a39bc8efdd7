#!/bin/sh
# Fill .venv with the pinned set. A CPU build of torch comes from the folder in PIP_FIND_LINKS where that has one, else
# from PyTorch's own index by uv's backend option, else (the index cannot be reached) PyPI's build stands in, which
# brings CUDA packages along. Says what it does in a few lines; what uv says goes to .venv/install.log.
set -eu
python="${PYTHON:-.venv/bin/python}"
supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
if [ -z "${PYTHON:-}" ]; then
  for python in .venv/bin/python python3.11 python3.12 python3.13 python3; do
    "$python" -c "$supported" 2>/dev/null && break
  done
fi
"$python" -c "$supported" 2>/dev/null || {
  echo "Python 3.11, 3.12 or 3.13 is needed: put one on the PATH, or say make setup PYTHON=/path/to/python3.12" >&2
  exit 2
}

# The number of the lock's packages that an environment has by now.
count() {
  find .venv/lib -maxdepth 3 -name '*.dist-info' 2>/dev/null | wc -l
}

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ] ||
  "$python" -m venv --clear .venv
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.8

log=.venv/install.log
total=$(grep -c '==' requirements-cpu.lock)
began=$(date +%s)
size=1200 # MB of the lock's packages, torch among them; what is in uv's cache is not fetched again
echo "Setting up .venv with Python $version: $total packages, up to $size MB to fetch; what uv says goes to $log."

# The MB fetched by now, by what uv says of large packages: Downloading torch (180.0MiB), Downloaded torch.
fetched() {
  awk '/Downloading/ { gsub(/[()]/, "", $3); mb[$2] = $3 * ($3 ~ /GiB/ ? 1024 : $3 ~ /KiB/ ? 0.001 : 1) }
    /Downloaded/ { all += mb[$2] } END { printf "%d", all }' "$log"
}

# Every ten seconds: what has been done, and how long the rest takes at this rate.
progress() {
  while sleep 10; do
    spent=$(($(date +%s) - began))
    mb=$(fetched)
    if grep -q '^Installed' "$log"; then
      echo "  $spent s: installed; compiling, so that all of it imports in half the time (about a minute)"
    elif [ "$mb" -gt 0 ] && [ "$mb" -lt "$size" ]; then
      echo "  $spent s: $mb of at most $size MB fetched, about $((spent * (size - mb) / mb)) s left at most"
    else
      echo "  $spent s: $(count) of $total packages installed"
    fi
  done
}
progress &
watcher=$!
trap 'kill $watcher 2>/dev/null || true' EXIT

# Compiled now, once: vLLM, torch and Ray import for twice as long without, in each of a sweep's processes.
sync() {
  .venv/bin/uv pip install --python .venv/bin/python --no-deps --compile-bytecode "$@" >>"$log" 2>&1
}
: >"$log"
if [ -n "${PIP_FIND_LINKS:-}" ] && UV_FIND_LINKS="$PIP_FIND_LINKS" sync -r requirements-cpu.lock; then
  :
elif sync --torch-backend cpu -r requirements-cpu.lock; then
  :
else
  echo "  No CPU build of torch can be had for Python $version: taking PyPI's, with the CUDA packages it asks for." >&2
  grep -v '^torch==' requirements-cpu.lock >.venv/without-torch.lock
  torch=$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' requirements-cpu.lock)
  if sync -r .venv/without-torch.lock && .venv/bin/uv pip install --python .venv/bin/python "$torch" >>"$log" 2>&1; then
    :
  else
    tail -20 "$log" >&2
    echo "The packages cannot be installed; all that was said is in $log" >&2
    exit 1
  fi
fi
.venv/bin/uv pip install --python .venv/bin/python --no-deps --quiet --editable .
echo "Set up in $(($(date +%s) - began)) s: .venv/bin/fortifai doctor checks it."
