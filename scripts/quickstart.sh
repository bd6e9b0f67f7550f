#!/usr/bin/env bash
# From a clone to a picture: installs what is needed, builds, trains on Fashion-MNIST and leaves a grid of samples.
#   scripts/quickstart.sh [OUT_DIR]      (default: out/quickstart; STEPS=N trains for longer or shorter)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/quickstart}
steps=${STEPS:-700}

scripts/install_deps.sh --minimal
cmake -S . -B build/quickstart -G Ninja -DCMAKE_BUILD_TYPE=Release -DMUTILDE_TESTS=OFF -DMUTILDE_BENCH=OFF
cmake --build build/quickstart --target mutilde_app
mutilde=build/quickstart/app/mutilde

# The cosine schedule and a fast average suit a run of a few minutes.
"$mutilde" train --data fashion-mnist --preset small --image_channels 1 \
  --noise_schedule cosine --lr 1e-3 --batch_size 32 --ema_rate 0.995 --ema_warmup \
  --steps "$steps" --sample_interval 0 --out "$out" --overwrite
"$mutilde" sample "$out" --num_samples 64 --timestep_respacing 250 --out "$out/samples.png"
echo "Open $out/samples.png"
