// Tests that more than one backend must pass: they run in more than one program.
#pragma once

#include <vector>

#include "core/dtype.h"

namespace mutilde {

/// Where this program runs them. What they compare with knows no device, so that every backend is held to the same
/// numbers.
std::vector<Device> devices();

}  // namespace mutilde
