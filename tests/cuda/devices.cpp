// The table of ops (tests/core/op_cases.h) runs on the first GPU.
#include "core/op_cases.h"
#include "cuda/devices.h"

namespace mutilde {

std::vector<Device> devices() {
  use_cuda();
  return {Device::cuda()};
}

}  // namespace mutilde
