// The table of ops (tests/core/op_cases.h) and the original program's networks run on the first GPU.
#include "support/devices.h"

#include "cuda/devices.h"

namespace mutilde {

std::vector<Device> devices() {
  use_cuda();
  return {Device::cuda()};
}

}  // namespace mutilde
