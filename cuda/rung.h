// The rungs of the ladder: the ways in which the backend can compute its matrix products, which
// dense layers and convolutions are.
#pragma once

#include "core/dtype.h"

namespace mutilde::cuda {

enum class Rung {
  kAutomatic,    // best_rung()
  kPlain,        // product_plain.h, conv_plain.cu: a thread a number, all from global memory
  kTiled,        // product_tiled.h: tiles in shared memory, sums in registers
  kTensorCores,  // product_wmma.h: factors rounded to tf32, tensor cores
};

/// The fastest rung that keeps the digits of the type. Tensor cores multiply a float32 only after
/// its fraction was cut from 24 to 11 bits (tf32). That is enough to train with, but it is another
/// type: float32 means float32 here, as in PyTorch's matrix products, so that a GPU gives the CPU's
/// numbers up to rounding. Tensor cores are for who asks for them.
constexpr Rung best_rung(DType) { return Rung::kTiled; }

/// What is run for a rung that was asked for. Our tensor-core rung has no float64, which is there
/// to check gradients and not to be fast.
constexpr Rung rung_for(DType dtype, Rung asked) {
  const bool has_it = asked != Rung::kTensorCores || dtype == DType::kFloat32;
  return asked == Rung::kAutomatic || !has_it ? best_rung(dtype) : asked;
}

/// "auto", "plain", "tiled", "wmma". Throws Error for another text.
Rung rung_named(const char* name);

/// What the environment variable MUTILDE_CUDA_RUNG names; kAutomatic where it is not set.
Rung rung_from_environment();

}  // namespace mutilde::cuda
