#!/bin/sh
# Set up one node of a cluster: Python 3.11 and the pinned packages, in .venv of the project folder that this file is in.
#
#   sh cluster/node.sh         the GPU set where the driver shows a GPU, else the CPU set
#   sh cluster/node.sh gpu     the GPU set, from a machine without one (a login node, an image build)
#
# It needs python3 with pip, of any version, and goes on only where the set that is there is another one.
set -eu
cd "$(dirname "$0")/.."

kind="${1:-auto}"
if [ "$kind" = auto ]; then
  if nvidia-smi -L >/dev/null 2>&1; then kind=gpu; else kind=cpu; fi
fi
case "$kind" in
  cpu) lock=requirements-cpu.lock backend=cpu ;;
  # PyPI's own torch is the build that vLLM's GPU wheel was made for: nothing else may choose one.
  gpu) lock=cluster/requirements-gpu.lock backend='' ;;
  *)
    echo "usage: sh cluster/node.sh [cpu|gpu]" >&2
    exit 2
    ;;
esac

# Installing again would replace packages under a running Ray.
wanted="$kind $(cat "$lock" pyproject.toml | sha256sum | cut -c1-64)"
if [ "$(cat .venv/.node 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi

python3 -m uv --version >/dev/null 2>&1 || python3 -m pip install --quiet --user uv==0.13.8
python3 -m uv venv --quiet --clear --python 3.11 .venv
python3 -m uv pip install --quiet --python .venv/bin/python --no-deps --compile-bytecode \
  ${backend:+--torch-backend "$backend"} -r "$lock"
python3 -m uv pip install --quiet --python .venv/bin/python --no-deps --editable .
printf '%s\n' "$wanted" >.venv/.node
