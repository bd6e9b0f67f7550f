#!/usr/bin/env bash
# Installs what is missing, checks format and names, builds, and runs every test.
#   scripts/test.sh           release by g++, the kernels' tests on each instruction set, for GPUs where there is
#                             nvcc (that it compiles), then by clang asan (address + undefined) and tsan (the
#                             tests with threads)
#   scripts/test.sh --quick   format, names and release only
set -euo pipefail

quick=false
case "${1:-}" in
  "") ;;
  --quick) quick=true ;;
  *)
    echo "usage: scripts/test.sh [--quick]" >&2
    exit 2
    ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
jobs="$(nproc)"
# Tests run side by side: an OpenMP thread that waits must not hold the core that another needs.
export OMP_WAIT_POLICY=passive
logs="$(mktemp -d)"
trap 'rm -rf "$logs"' EXIT

declare -a summary=()
stage() {  # stage NAME COMMAND...: runs it, keeps its wall time for the closing table
  local name="$1" start=$SECONDS status=0
  shift
  echo "== $name"
  # Not `"$@" || status=$?`: there, a command that fails inside a function would not end it.
  set +e
  (
    set -e
    "$@"
  )
  status=$?
  set -e
  summary+=("$(printf '%-16s %4d s  %s' "$name" $((SECONDS - start)) \
    "$([[ $status == 0 ]] && echo ok || echo "FAILED ($status)")")")
  if [[ $status != 0 ]]; then
    print_summary
    exit "$status"
  fi
}

print_summary() {
  echo "== summary"
  printf '%s\n' "${summary[@]}"
  printf '%-16s %4d s\n' total "$SECONDS"
}

our_files() {  # our_files PATTERN...: names, each ended by a zero byte
  # A clone owned by another user is no reason to refuse listing its files.
  git -c safe.directory="$PWD" ls-files -z -- "$@"
}

check_format() {
  our_files '*.h' '*.cpp' '*.cu' '*.cuh' |
    xargs -0 -r -P "$jobs" -n 16 clang-format-14 --dry-run -Werror
}

# The rules of .clang-tidy, names above all, on every header of ours. All in one source file: nearly
# all of the time goes to the standard library's headers, which are then read once. cuda/ has CUDA's names,
# libcxx.h is for another standard library.
check_headers() {
  our_files '*.h' ':!tests' ':!cuda' ':!playground/libcxx.h' |
    xargs -0 printf '#include "%s"\n' >"$logs/headers.cpp"
  clang-tidy-14 --quiet --config-file=.clang-tidy "$logs/headers.cpp" -- -std=c++20 -I"$PWD" \
    >"$logs/tidy" 2>&1 || { cat "$logs/tidy"; return 1; }
}

build() {  # build PRESET FLAG...
  cmake --preset "$1" >"$logs/configure" 2>&1 || { cat "$logs/configure"; return 1; }
  # A good build says little; a bad one everything.
  cmake --build --preset "$@" -j "$jobs" >"$logs/build" 2>&1 || { cat "$logs/build"; return 1; }
  tail -n 1 "$logs/build"
}

test_preset() {  # test_preset PRESET FLAG...
  local preset="$1" status=0
  # The sanitizers of g++ 12 and clang 14 die at start where the kernel randomises more address bits
  # than they know of; a sandbox may forbid turning that off, and then they have to live with it.
  local runner=()
  if [[ $preset != release && $preset != portable ]] && setarch "$(uname -m)" -R true 2>/dev/null; then
    runner=(setarch "$(uname -m)" -R)
  fi
  "${runner[@]}" ctest --preset "$@" -j "$jobs" --no-tests=error >"$logs/ctest" 2>&1 ||
    status=$?
  if [[ $status != 0 ]]; then
    cat "$logs/ctest"
  else
    # ctest's closing lines, from the count of passed tests on.
    sed -n '/^[0-9]*% tests passed/,$p' "$logs/ctest"
  fi
  return "$status"
}

nvcc_release() {  # of CUDA: 13; 0 where there is none
  PATH="$PATH:/usr/local/cuda/bin" nvcc --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\..*/\1/p' || echo 0
}

stage "dependencies" scripts/install_deps.sh
# Objects built for this machine's instruction set must not come out of another machine's cache.
CCACHE_NAMESPACE="mutilde-$(g++ -march=native -Q --help=target 2>/dev/null | sha256sum | cut -c 1-12)"
export CCACHE_NAMESPACE
# Paths below the clone do not count: another clone finds the same objects.
export CCACHE_BASEDIR="$PWD" CCACHE_NOHASHDIR=1
stage "format" check_format
stage "names" check_headers
stage "release build" build release
stage "release tests" test_preset release
if ! $quick; then
  stage "portable build" build portable --target core_tests
  stage "portable tests" test_preset portable -L '^isa$'
  if (("$(nvcc_release)" >= 12)); then
    stage "nvcc build" build nvcc
  else
    summary+=("nvcc build       left out: no nvcc of CUDA 12 or later")
  fi
  stage "asan build" build asan
  stage "asan tests" test_preset asan
  stage "tsan build" build tsan
  stage "tsan tests" test_preset tsan
fi
print_summary
