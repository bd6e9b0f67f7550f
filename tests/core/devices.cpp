#include "core/op_cases.h"

namespace mutilde {

std::vector<Device> devices() { return {Device::cpu()}; }

}  // namespace mutilde
