#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and nvcc: builds for that GPU, runs all CUDA tests on it (they compare
# with formulas and with the CPU backend), compute-sanitizer over steps of training, and the benchmarks,
# against PyTorch where python3 has one for this GPU. Ends with tables, which it also writes to
# build/gpu/report.md. Needs no network.
#   scripts/gpu_check.sh               all of it; stops after 8 minutes
#   scripts/gpu_check.sh --precision fp16
#                                      the same, with float16 measured in place of bfloat16
#   scripts/gpu_check.sh --pack        on a Debian machine with network: puts the packages that the build
#                                      needs into build/gpu_packages/, to be copied to one without; found
#                                      there, they are unpacked below build/ and nothing is installed
#   scripts/gpu_check.sh --build-only  without a GPU: configures and compiles for all targets
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

build=build/gpu packages=build/gpu_packages report=build/gpu/report.md
jobs="$(nproc)"

precision=bf16
if [[ "${1:-}" == --precision && "${2:-}" =~ ^(bf16|fp16)$ ]]; then
  precision="$2"
  shift 2
fi
case "${1:-}" in
  "" | --build-only) ;;
  --pack)
    mkdir -p "$packages" && cd "$packages" &&
      exec apt-get download libfmt-dev nlohmann-json3-dev libcli11-dev libstb-dev libzip-dev libzip4 \
        libfmt9 zlib1g-dev libgtest-dev libgmock-dev libtomlplusplus-dev
    ;;
  *)
    echo "usage: scripts/gpu_check.sh [--precision bf16|fp16] [--pack | --build-only]" >&2
    exit 2
    ;;
esac

give_up() {
  echo "gpu_check: $1; nothing was checked" >&2
  exit 1
}

PATH="$PATH:/usr/local/cuda/bin"
command -v nvcc >/dev/null || give_up "there is no nvcc, on the PATH or in /usr/local/cuda/bin"
targets=()
if [[ "${1:-}" != --build-only ]]; then
  gpu="$(nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader 2>/dev/null | head -n 1)"
  [[ -n "$gpu" ]] || give_up "there is no NVIDIA driver or no GPU (nvidia-smi names none)"
  # One target compiles several times faster than all of them.
  capability="$(cut -d , -f 2 <<<"$gpu" | tr -d ' .')"
  ((capability >= 80)) || give_up "$gpu has compute capability $capability / 10, 8.0 (A100) is the least"
  targets=("-DCMAKE_CUDA_ARCHITECTURES=$capability-real")
fi

if compgen -G "$packages/*.deb" >/dev/null; then
  root="$PWD/$packages/root" library="$PWD/$packages/root/usr/lib/x86_64-linux-gnu"
  for package in "$packages"/*.deb; do dpkg -x "$package" "$root"; done
  export CMAKE_PREFIX_PATH="$root/usr" PKG_CONFIG_PATH="$library/pkgconfig" CPATH="$root/usr/include"
  export PKG_CONFIG_SYSROOT_DIR="$root" LIBRARY_PATH="$library" LD_LIBRARY_PATH="$library:${LD_LIBRARY_PATH:-}"
fi

mkdir -p "$build"
deadline=480  # seconds for everything
[[ "${1:-}" == --build-only ]] && deadline=10000
declare -a summary=()
failed=false
stage() {  # stage NAME SECONDS COMMAND...: its output goes to a file, its end and time to the table
  local name="$1" limit="$2" start=$SECONDS log="$build/$1.log" result=ok
  shift 2
  if ((SECONDS + limit > deadline)); then limit=$((deadline - SECONDS)); fi
  if ((limit <= 0)); then
    summary+=("| $name | 0 | FAILED: no time left |")
    failed=true
    return
  fi
  echo "== $name: $*"
  if ! timeout "$limit" "$@" >"$log" 2>&1; then
    result="FAILED, see $log"
    failed=true
    tail -n 30 "$log"
  fi
  summary+=("| $name | $((SECONDS - start)) | $result |")
}

print_report() {
  echo
  echo "| stage | seconds | result |"
  echo "|---|---|---|"
  printf '%s\n' "${summary[@]}"
  echo "| total | $SECONDS | $($failed && echo FAILED || echo ok) |"
}

# PyTorch compiles for minutes: it does so while we do. Then its processes wait for the file `turn`.
peers= turn="$build/turn"
rm -f "$turn" "$build/compare.json"
if [[ "${1:-}" != --build-only ]] && python3 -c 'import torch; torch.zeros(1, device="cuda")' 2>/dev/null; then
  python3 bench/compare.py --mutilde "$build/app/mutilde" --python python3 --device cuda --precision "$precision" \
    --presets cifar,small --when "$turn" --json "$build/compare.json" >"$build/peers.log" 2>&1 &
  peers=$!
  trap 'kill $peers 2>/dev/null' EXIT
fi

generator=()
command -v ninja >/dev/null && generator=(-G Ninja)
stage configure 60 cmake -S . -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DMUTILDE_CUDA=nvcc \
  "-DCMAKE_CUDA_COMPILER=$(command -v nvcc)" -DMUTILDE_TUTORIALS=OFF "${targets[@]}"
if ! $failed; then
  stage build "$deadline" cmake --build "$build" -j "$jobs" --target cuda_tests cuda_bench mutilde_app
fi
if [[ "${1:-}" == --build-only ]]; then
  print_report
  ! $failed
  exit
fi
if ! $failed; then
  stage tests 120 "$build/tests/cuda/cuda_tests" --gtest_brief=1
  # The same with each step collected into a CUDA graph first.
  MUTILDE_CUDA_GRAPH=1 stage graphs 30 "$build/tests/cuda/cuda_tests" --gtest_brief=1 --gtest_filter='CudaTrainer.*'
  if [[ -n "$peers" ]]; then
    touch "$turn"
    stage compare 200 bash -c "tail --pid=$peers -f /dev/null; cat $build/peers.log; test -s $build/compare.json"
    stage layers 90 python3 bench/cuda_layers.py "$build/bench/cuda_bench" "$precision"
  else
    summary+=("| compare, layers | 0 | left out: python3 has no PyTorch for this GPU |")
  fi
  stage ladder 90 "$build/bench/cuda_bench" --precision "$precision"
  # A tiny network with all parts of the real one, in each precision; and products of each rung of the ladder.
  step=--gtest_filter=CudaTrainer.AStep*
  if command -v compute-sanitizer >/dev/null; then
    # Without the caching allocator, in whose memory no tensor's end is seen.
    MUTILDE_CUDA_CACHE=0 stage memcheck 90 compute-sanitizer --error-exitcode 1 "$build/tests/cuda/cuda_tests" \
      "$step:CudaRungs.*:Cuda/ShortConvolution.*"
    stage racecheck 120 compute-sanitizer --tool racecheck --error-exitcode 1 "$build/tests/cuda/cuda_tests" \
      "--gtest_filter=CudaTrainer.AStepInBfloat16*"  # it is the slowest of all by far
  else
    summary+=("| memcheck, racecheck | 0 | left out: there is no compute-sanitizer |")
  fi
fi

{
  echo "# $gpu, $(nvcc --version | grep -o 'V[0-9.]*$'), $(date -I)"
  print_report
  for log in compare layers ladder; do
    echo
    grep -vE '^$' "$build/$log.log" 2>/dev/null
  done
} >"$report"
echo
cat "$report"
! $failed
