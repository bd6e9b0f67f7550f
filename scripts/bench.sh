#!/usr/bin/env bash
# Measures training and sampling steps of the three presets against PyTorch, run in turn, and prints a table.
#   scripts/bench.sh [--json FILE] [--runs N] [--presets small,medium] [--modes train] ...
#   scripts/bench.sh --kernels [--json FILE] [small] [word ...]     every layer, against oneDNN and PyTorch
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install_deps.sh --bench >&2
cmake --preset release >&2
python=$(scripts/peer_env.sh | tail -n 1)
if [[ ${1:-} == --kernels ]]; then
  cmake --build --preset release --target kernels_bench >&2
  exec "$python" bench/layers.py --kernels_bench build/release/bench/kernels_bench "${@:2}"
fi
cmake --build --preset release --target mutilde_app >&2
exec python3 bench/compare.py --mutilde build/release/app/mutilde --python "$python" "$@"
