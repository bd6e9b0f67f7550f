// The rungs of the ladder: the ways in which the backend can compute its matrix products, which
// dense layers and convolutions are.
#pragma once

#include "core/dtype.h"
#include "core/precision.h"

namespace mutilde::cuda {

enum class Rung {
  kAutomatic,  // best_rung()
  kPlain,      // product_plain.h, conv_plain.cu: a thread a number, all from global memory
  kTiled,      // product_tiled.h: tiles in shared memory, sums in registers
  kWmma,    // product_wmma.h: factors rounded to tf32, or to a short type where that is asked for
  kMma,     // product_mma.h: short types alone, tiles on their way while others are multiplied
  kHopper,  // hopper/: short types alone, its own instructions
};

/// The last two, which multiply what lies in memory in a short type. What they do not take goes to kWmma.
inline bool multiplies_short(Rung rung) { return rung == Rung::kMma || rung == Rung::kHopper; }

/// The fastest rung that keeps the digits that are asked for (core/precision.h). Tensor cores multiply
/// a float32 only after its 24 significant bits were cut to 11 (tf32, float16) or 8 (bfloat16). That is enough
/// to train with, but it is another type: float32 means float32 here, as in PyTorch's matrix products,
/// so that a GPU gives the CPU's numbers up to rounding. Tensor cores are for who asks for them, by the
/// rung's name or by a short type's.
Rung best_rung(DType dtype);

/// What is run for a rung that was asked for: the best one where that rung has no products of this type
/// and precision. Of float64, which is there to check gradients and not to be fast, our tensor cores have
/// none. (Asked for by name, plain and tiled multiply float32 as it is: where products may be of a short
/// type they need not.)
Rung rung_for(DType dtype, Rung asked);

/// "auto", "plain", "tiled", "wmma", "mma", "wgmma". Throws Error for another text.
Rung rung_named(const char* name);

/// What the environment variable MUTILDE_CUDA_RUNG names; kAutomatic where it is not set.
Rung rung_from_environment();

}  // namespace mutilde::cuda
