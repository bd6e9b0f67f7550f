#!/usr/bin/env bash
# The experiment of docs/clipping.md: trains networks on both schedules and samples them, from the same noise, with and
# without clipping. Leaves pictures and tables.md for each data set.
#   scripts/clipping.sh [--cifar FOLDER] [OUT_DIR]   (default: out/clipping; STEPS=N trains for longer or shorter)
#   scripts/clipping.sh --test DIR OUT_DIR           tiny networks, with the programs of the build folder DIR
# FOLDER: CIFAR-10's training images, its binary files or single pictures. Without it Fashion-MNIST alone is used.
set -euo pipefail
cd "$(dirname "$0")/.."
cifar=
programs=
steps=${STEPS:-600}
model=(--preset small)
walk=(--steps 1000,50)
while [[ ${1:-} == --* ]]; do
  case "$1" in
    --cifar) cifar=${2:?--cifar needs a folder} ;;
    --test)
      programs=${2:?--test needs a folder}
      steps=1
      model=(--image_size 8 --num_channels 32 --channel_mult 1,1 --num_res_blocks 1 --attention_resolutions 4
        --diffusion_steps 24)
      walk=(--steps 24,4 --num_samples 2)
      ;;
    *)
      sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
      exit 2
      ;;
  esac
  shift 2
done
out=${1:-out/clipping}

if [[ -z $programs ]]; then
  scripts/install_deps.sh --minimal
  programs=build/clipping
  cmake -S . -B "$programs" -G Ninja -DCMAKE_BUILD_TYPE=Release -DMUTILDE_TESTS=OFF -DMUTILDE_BENCH=OFF
  cmake --build "$programs" --target mutilde_app clipping
fi

experiment() {  # experiment NAME DATA CHANNELS
  local schedule
  for schedule in linear cosine; do
    "$programs/app/mutilde" train --data "$2" "${model[@]}" --image_channels "$3" --noise_schedule "$schedule" \
      --lr 1e-3 --batch_size 16 --ema_rate 0.995 --ema_warmup --steps "$steps" --sample_interval 0 \
      --out "$out/$1/$schedule" --overwrite
  done
  "$programs/tools/clipping" "${walk[@]}" --out "$out/$1" "$out/$1/linear" "$out/$1/cosine"
}

experiment fashion fashion-mnist 1
if [[ -n $cifar ]]; then
  experiment cifar "$cifar" 3
fi
echo "Open $out"
