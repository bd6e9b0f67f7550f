#include "core/cpu/kernels.h"

#include "core/cpu/cpu_backend.h"
#include "core/cpu/peak.h"
#include "core/cpu/simd.h"

namespace mutilde {
namespace {

Backend& cpu_backend() {
  static CpuBackend* instance = new CpuBackend;  // never destroyed: static tensors may outlive main
  return *instance;
}

}  // namespace

constinit const CpuKernels kMutildeCpuKernels = {simd::kVectorBytes, simd::kHasBf16, cpu_backend,
                                                 peak_gflops};

}  // namespace mutilde
