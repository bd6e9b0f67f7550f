// What core/cpu shows of itself: the one symbol that a copy of it compiled for another instruction
// set keeps (cmake/mutilde_cpu_isas.cmake).
#pragma once

#include "core/backend.h"

namespace mutilde {

struct CpuKernels {
  int vector_bytes;
  bool has_bf16;  // an instruction for pairs of bfloat16; else they take longer than floats
  Backend& (*backend)();
  double (*peak_gflops)(int threads);  // core/cpu/peak.h
};

// Data and not a function: to look at it runs no instruction that the processor may lack. C linkage
// gives it a name that objcopy can be told.
extern "C" const CpuKernels kMutildeCpuKernels;

}  // namespace mutilde
