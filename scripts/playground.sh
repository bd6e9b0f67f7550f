#!/usr/bin/env bash
# Builds the playground: a page that runs the library in a browser.
#   scripts/playground.sh [OUT_DIR]   (default: out/playground; open its index.html)
#   scripts/playground.sh --check     builds, and compares the page in headless Chromium with the native programs
#   scripts/playground.sh --train     makes playground/model.safetensors anew (20 minutes on one core)
# BUILD_DIR=... for another build folder than build/playground.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD_DIR:-build/playground}
# Where Debian keeps what Emscripten's scripts require, for a node that is not Debian's.
export NODE_PATH=/usr/share/nodejs
if command -v ccache >/dev/null; then  # the second names the one that em++ puts before clang
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache EM_COMPILER_WRAPPER=ccache
fi

build_app() {
  cmake -S . -B "$build/app" -G Ninja -DCMAKE_BUILD_TYPE=Release -DMUTILDE_TESTS=OFF -DMUTILDE_BENCH=OFF \
    -DMUTILDE_TUTORIALS=OFF
  cmake --build "$build/app" --target mutilde_app
  mutilde="$build/app/app/mutilde"
}

train() {
  build_app
  "$mutilde" train --data fashion-mnist --preset small --image_size 28 --image_channels 1 --channel_mult 1,1,2 \
    --attention_resolutions 14,7 --noise_schedule cosine --batch_size 16 --lr 2e-3 --lr_anneal_steps 20000 \
    --ema_rate 0.999 --sample_interval 0 --out "$build/run" --overwrite
  /usr/bin/python3 playground/shrink.py "$build/run/checkpoint_020000.safetensors" playground/model.safetensors
}

build_page() {  # build_page OUT_DIR
  CMAKE_CXX_COMPILER_LAUNCHER='' emcmake cmake -S playground -B "$build/wasm" -G Ninja
  cmake --build "$build/wasm"
  mkdir -p "$1"
  cp playground/index.html playground/style.css playground/page.js "$1"
  /usr/bin/python3 playground/images.py "$1/images.js"
  # One function, from whose text the page makes its worker.
  { echo "function playgroundWorker() {"; cat "$build/wasm/engine.js" playground/worker.js; echo "}"; } >"$1/engine.js"
}

check() {
  build_page "$build/page"
  cmake -S playground -B "$build/native" -G Ninja
  cmake --build "$build/native"
  mutilde=${MUTILDE:-}
  [[ -n $mutilde ]] || build_app
  # Debian's own python3, which has its websockets whatever else is on the PATH.
  /usr/bin/python3 playground/check.py "$build/page" "$build/native/playground_native" "$mutilde" playground/model.safetensors
}

scripts/install_deps.sh --playground
case "${1:-}" in
  --check) check ;;
  --train) train ;;
  -*)
    echo "usage: scripts/playground.sh [OUT_DIR | --check | --train]" >&2
    exit 2
    ;;
  *)
    build_page "${1:-out/playground}"
    echo "Open ${1:-out/playground}/index.html"
    ;;
esac
