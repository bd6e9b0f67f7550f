#include "support/devices.h"

namespace mutilde {

std::vector<Device> devices() { return {Device::cpu()}; }

}  // namespace mutilde
