#!/usr/bin/env bash
# That valgrind finds a read of memory that was not written, and nothing where all was; 77, to CTest "skipped",
# where it is not installed.
#   tests/cuda/emulation/valgrind/run.sh PROGRAM
set -uo pipefail
program="$1"
if ! command -v valgrind >/dev/null; then
  echo "skipped: valgrind is not installed"
  exit 77
fi

failed=0
expect() {  # expect KERNEL COUNT STATUS TEXT...
  local kernel="$1" count="$2" expected="$3" output status text
  shift 3
  output="$(valgrind --quiet --error-exitcode=9 "$program" "$kernel" "$count" 2>&1)"
  status=$?
  if ((status == 77)); then
    echo "skipped: $output"
    exit 77
  fi
  for text in "$@"; do
    if ((status != expected)) || ! grep -q -- "$text" <<<"$output"; then
      echo "$kernel $count: exit status $status, $expected expected, and '$text' in:"
      echo "$output"
      failed=1
    fi
  done
}
for kernel in shared_numbers device_numbers; do
  expect $kernel 64 0 '^64$'
  expect $kernel 63 9 'depends on uninitialised value' "$kernel.*(unwritten.cpp:"
done
exit $failed
