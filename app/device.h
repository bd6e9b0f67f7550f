// Where to compute: the flag --device.
#pragma once

#include <string>

#include "core/dtype.h"

namespace mutilde::app {

constexpr const char* kDeviceHelp =
    "cpu, cuda or cuda:1 (the second GPU); auto: a GPU if there is one";

/// Throws UsageError for a text that names no device, and for a GPU that is not there, with the
/// reason.
Device find_device(const std::string& text);

}  // namespace mutilde::app
