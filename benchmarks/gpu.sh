#!/usr/bin/env bash
# Exactness and speed on a GPU machine, in one call of under 8 minutes; writes benchmarks/results/gpu-NAME.json.
#
#     benchmarks/gpu.sh h200
#     PYTHON=python3.12 benchmarks/gpu.sh h200 --output "$OUT/gpu-h200.json"
#     benchmarks/gpu.sh trial --device cpu --quick --output /tmp/trial.json
#
# Needs torch, tensordict, torchrl and what they bring; the package itself need not be installed. What follows the name
# goes to benchmarks/gpu.py, which says what is measured.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ $# -eq 0 || $1 == -* ]]; then
    echo "usage: benchmarks/gpu.sh NAME [options of benchmarks/gpu.py]" >&2
    exit 2
fi

# The installed package has configs/ inside, the checkout has it beside: a folder of links looks like the former.
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
mkdir "$site/dreamer_torchrl"
ln -s "$root"/dreamer_torchrl/* "$root/configs" "$site/dreamer_torchrl/"

PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 "${PYTHON:-python3}" "$root/benchmarks/gpu.py" "$@"
