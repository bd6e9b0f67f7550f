// Which instruction set the CPU kernels run on. A build for any x86-64 (MUTILDE_NATIVE=OFF) holds
// core/cpu once for each of three and takes the fastest that the processor has; every other build
// holds it once.
#pragma once

#include <span>
#include <string_view>

#include "core/cpu/kernels.h"

namespace mutilde {

struct CpuIsa {
  const char* name;
  bool runs_here;  // the processor has it, and the operating system saves its registers
  const CpuKernels* kernels;
};

/// All that this program holds, the slowest first.
std::span<const CpuIsa> cpu_isas();

/// The fastest that runs here if `name` is empty, else the one of that name. Throws Error if this
/// program does not hold it or the processor lacks it.
const CpuIsa& find_cpu_isa(std::string_view name);

/// The one that is used: the environment variable MUTILDE_ISA names it, or it is the fastest.
/// Throws as find_cpu_isa().
const CpuIsa& cpu_isa();

}  // namespace mutilde
