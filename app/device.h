// Where and how to compute: the flags --device and --precision.
#pragma once

#include <string>
#include <vector>

#include "core/dtype.h"

namespace mutilde::app {

constexpr const char* kDeviceHelp =
    "cpu, cuda or cuda:1 (the second GPU); auto: a GPU if there is one";

/// Throws UsageError for a text that names no device, and for a GPU that is not there, with the
/// reason.
Device find_device(const std::string& text);

constexpr const char* kPrecisionHelp =
    "bf16: products may round their factors to bfloat16 where that is faster, and a GPU keeps what "
    "lies between layers in it; fp16: the same in float16, on a GPU alone, with scaled losses; "
    "parameters and sums are float32";
inline const std::vector<std::string> kPrecisions = {"fp32", "bf16", "fp16"};

/// Sets product_precision() to one of kPrecisions; warns where that is slower. Throws UsageError for fp16 on a
/// device without kernels for it.
void use_precision(const std::string& text, Device device);

}  // namespace mutilde::app
