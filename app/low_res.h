// The small images that super-resolution starts from.
#pragma once

#include <string>

#include "diffusion/settings.h"

namespace mutilde::app {

struct LowRes {
  Tensor x;  // [M, small_size, small_size, C], float32 in [-1, 1]
  Tensor y;  // [M] int64; undefined where there are no classes
};

/// `spec`: whatever --data takes (its first `count` images, at small_size), or an .npz of samples,
/// arr_0 (uint8, NHWC) and perhaps arr_1 (int64). Throws FileError, one line, for what is missing,
/// damaged or of another size.
LowRes load_low_res(const std::string& spec, const Settings& settings, int64_t count);

}  // namespace mutilde::app
