#!/bin/sh
# Fill .venv with the pinned set. A CPU build of torch comes from the folder in PIP_FIND_LINKS where that has one, else
# from PyTorch's own index by uv's backend option, else (the index cannot be reached) PyPI's build stands in, which
# brings CUDA packages along.
set -eu
python="${PYTHON:-python3.11}"
command -v "$python" >/dev/null 2>&1 || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
  echo "Python 3.11 is needed: put it on the PATH, or say make PYTHON=/path/to/python3.11" >&2
  exit 2
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.8

# Compiled now, once: vLLM, torch and Ray import for twice as long without, in each of a sweep's processes.
sync() {
  .venv/bin/uv pip install --python .venv/bin/python --no-deps --compile-bytecode "$@"
}
if [ -n "${PIP_FIND_LINKS:-}" ] && UV_FIND_LINKS="$PIP_FIND_LINKS" sync -r requirements-cpu.lock; then
  :
elif sync --torch-backend cpu -r requirements-cpu.lock; then
  :
else
  echo "No CPU build of torch can be had: taking PyPI's, with the CUDA packages it asks for." >&2
  grep -v '^torch==' requirements-cpu.lock | sync -r -
  .venv/bin/uv pip install --python .venv/bin/python "$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' requirements-cpu.lock)"
fi
.venv/bin/uv pip install --python .venv/bin/python --no-deps --quiet --editable .
