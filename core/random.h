// Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011). Element i of a draw is a pure function of (seed, stream, offset + i): the
// same on any number of threads, on both backends and after a resume.
#pragma once

#include <array>
#include <cstdint>

#include "core/tensor.h"

namespace mutilde {

/// Ten rounds of Philox on a 128-bit counter under a 64-bit key.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// The block of four words that elements 4b .. 4b + 3 of a draw come from: key = seed,
/// counter = (b, stream), each 64 bits, low word first.
inline std::array<uint32_t, 4> random_block(uint64_t seed, uint64_t stream, uint64_t block) {
  return philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                     static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                    {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
}

/// A generator hands out positions; its whole state is three integers that a checkpoint can hold.
class Generator {
 public:
  explicit Generator(uint64_t seed = 0, uint64_t stream = 0) : position_{seed, stream, 0} {}
  /// Throws Error unless the offset is a multiple of 4.
  explicit Generator(RandomPosition position);

  RandomPosition position() const { return position_; }
  /// Reserves n numbers (rounded up to whole blocks) and returns where they start.
  RandomPosition take(int64_t n);

  /// float32 or float64; DTypeError for another.
  Tensor normal(const Shape& shape, DType dtype = DType::kFloat32, Device device = {});
  Tensor uniform(const Shape& shape, DType dtype = DType::kFloat32, Device device = {});  // [0, 1)
  /// int64 in [0, high). Throws Error if high < 1.
  Tensor integers(const Shape& shape, int64_t high);
  /// A random order of 0 .. n - 1, int64.
  Tensor permutation(int64_t n);

 private:
  RandomPosition position_;
};

}  // namespace mutilde

// How a position becomes a number, on every backend. Element i of a draw comes from word w[i % 4]
// of block (offset + i) / 4.
//   uniform   float32: (w >> 8) / 2^24; float64: w / 2^32; both in [0, 1)
//   normal    Box-Muller: words 0 and 1 of a block make its elements 0 and 1, 2 and 3 the others.
//             With u = uniform(w0) + 2^-24 (float64: 2^-32), in (0, 1], and v = uniform(w1):
//             sqrt(-2 ln u) cos(2 pi v) and sqrt(-2 ln u) sin(2 pi v), to a few rounding errors
//   dropout   kept where the float32 uniform is at least p, whatever the dtype
//   integers  two words each, the low one first, as b: floor(b * high / 2^64)
