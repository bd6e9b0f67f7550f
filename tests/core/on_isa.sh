#!/usr/bin/env bash
# Runs a program's tests on one instruction set; 77, to CTest "skipped", where the processor lacks it.
#   tests/core/on_isa.sh ISA PROGRAM ARGUMENT...
set -uo pipefail
export MUTILDE_ISA="$1"
shift
# As core/cpu_isa.cpp says it, at the first use of a tensor.
if ("$1" --gtest_list_tests 2>&1 || true) | grep "MUTILDE_ISA is '$MUTILDE_ISA', which this processor lacks"; then
  exit 77
fi
exec "$@"
