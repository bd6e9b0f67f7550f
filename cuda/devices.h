// Finding the GPUs. A program that wants them links the library `cuda`, or `no_cuda` where that is
// not built, and calls use_cuda() once; core knows nothing of CUDA before.
#pragma once

#include <string>

namespace mutilde {

struct CudaDevices {
  int count = 0;
  std::string why_none;  // "no NVIDIA driver ..", where the count is 0
};

/// Registers the CUDA backend, so that Device::cuda(0) .. Device::cuda(count - 1) work.
CudaDevices use_cuda();

}  // namespace mutilde
