#!/usr/bin/env bash
# Installs a build of mutilde into a prefix of its own, then builds and runs another project that
# finds it there.
#   tests/consumer/run.sh BUILD_DIR WORK_DIR
set -euo pipefail

if (($# != 2)); then
  echo "usage: tests/consumer/run.sh BUILD_DIR WORK_DIR" >&2
  exit 2
fi
source_dir="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
build_dir="$(cd "$1" && pwd)"
mkdir -p "$2"
work_dir="$(cd "$2" && pwd)"

cached() { sed -n "s/^$1:[^=]*=//p" "$build_dir/CMakeCache.txt"; }

# From nothing each time: a file that is no longer installed must not be found.
rm -rf "$work_dir/prefix" "$work_dir/build"
cmake --install "$build_dir" --prefix "$work_dir/prefix" >/dev/null

# Libraries that were built with a sanitizer need it at link time.
sanitize="$(cached MUTILDE_SANITIZE)"
cmake -S "$source_dir" -B "$work_dir/build" -G Ninja \
  -DCMAKE_PREFIX_PATH="$work_dir/prefix" -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_CXX_COMPILER="$(cached CMAKE_CXX_COMPILER)" \
  -DCMAKE_EXE_LINKER_FLAGS="${sanitize:+-fsanitize=$sanitize}" >"$work_dir/configure.log" 2>&1 ||
  { cat "$work_dir/configure.log"; exit 1; }
cmake --build "$work_dir/build" >"$work_dir/build.log" 2>&1 ||
  { cat "$work_dir/build.log"; exit 1; }

# The headers must have come from the prefix, not from the source tree.
if ! grep -q "$work_dir/prefix/" "$work_dir/build/build.ninja"; then
  echo "consumer: it does not use $work_dir/prefix" >&2
  exit 1
fi

output="$("$work_dir/build/app")"
echo "$output"
# Half way, the cosine schedule keeps a little less than half of the variance: with
# s = 0.008, cos^2((0.501 + s) / (1 + s) pi / 2) / cos^2(s / (1 + s) pi / 2) = 0.4923.
if ! grep -q '^alpha_bar\[500\] = 0\.4922' <<<"$output"; then
  echo "consumer: alpha_bar[500] is not the cosine schedule's" >&2
  exit 1
fi

output="$("$work_dir/build/check_op")"
echo "$output"
if [[ $output != "cube: the gradient is right" ]]; then
  echo "consumer: gradcheck rejects a gradient that is right" >&2
  exit 1
fi
