// Stands in for the CUDA backend where it is not built.
#include "cuda/devices.h"

namespace mutilde {

CudaDevices use_cuda() {
  return {0, "this program was built without CUDA (configure with -DMUTILDE_CUDA=nvcc)"};
}

}  // namespace mutilde
