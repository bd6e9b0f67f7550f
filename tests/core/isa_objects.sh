#!/usr/bin/env bash
# The kernels of one instruction set share nothing with the rest of the program: their object shows one
# constant, has no group that the linker could match by name, and runs nothing before main, where nobody
# has asked the processor yet.
#   tests/core/isa_objects.sh ISA OBJECT
set -euo pipefail
isa="$1" object="$2"

fail() {
  echo "isa_objects: $object $*" >&2
  exit 1
}

shown="$(nm --extern-only --defined-only "$object")"
[[ "$(awk '{ print $3 }' <<<"$shown")" == "kMutildeCpuKernels_$isa" ]] || fail "shows more: $shown"
sections="$(readelf --wide --section-headers "$object")"
! grep -E ' (GROUP|INIT_ARRAY) ' <<<"$sections" || fail "has a group, or code that runs before main"
