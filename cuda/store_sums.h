// How a warp stores its sums of a matrix product: as pairs where they are float32, and in a short type 16 bytes at a
// time, for which lanes exchange what they have.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/mma_instructions.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {

/// Of 4 times 8 columns the four lanes of a row have a pair of each 8. Having exchanged pairs, 4 x 4, lane l has
/// all of the l-th 8.
__device__ inline void exchange(uint32_t (&pairs)[4]) {
  for (int distance = 1; distance <= 2; distance *= 2) {
    const bool upper = (threadIdx.x & distance) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & distance) != 0) continue;
      uint32_t& low = pairs[i];
      uint32_t& high = pairs[i + distance];
      const uint32_t got = __shfl_xor_sync(kWholeWarp, upper ? low : high, distance);
      (upper ? low : high) = got;
    }
  }
}

__device__ inline float2 no_bias(int) { return make_float2(0, 0); }

/// A pair of short numbers plus another.
template <class E>
__device__ uint32_t plus(uint32_t a, uint32_t b) {
  const float2 x = unpack<E>(a), y = unpack<E>(b);
  return pack<E>(x.x + y.x, x.y + y.y);
}

/// Stores 16 rows from first_row on and numbers / 4 times 8 columns from first_column on. Lane l has sums of rows l / 4
/// and l / 4 + 8, of every 8 columns two: 2 (l % 4) and the next, in sums[column / 8 * 4 + (row is l / 4 + 8) * 2
/// + 0 or 1]. at(row, column) is the place in out of the numbers of a row from that column on, -1 where there are
/// none; bias(column) is what is added to a column and the next; residual, or null, lies like out. The columns of
/// out are a multiple of 2, and for a short type of 8.
template <int numbers, class Out, class At, class Bias>
__device__ void store_sums(const float (&sums)[numbers], int first_row, int first_column, Out* out,
                           const std::type_identity_t<Out>* residual, const At& at,
                           const Bias& bias) {
  constexpr int kPieces = numbers / 4;  // of 8 columns
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int lower = 0; lower < 2; ++lower) {
    const int row = first_row + lower * 8 + lane / 4;
    const auto pair_of = [&](int piece) {
      const float2 more = bias(first_column + piece * 8 + lane % 4 * 2);
      return make_float2(sums[piece * 4 + lower * 2] + more.x,
                         sums[piece * 4 + lower * 2 + 1] + more.y);
    };
    if constexpr (std::is_same_v<Out, float>) {
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        const int64_t place = at(row, first_column + piece * 8 + lane % 4 * 2);
        float2 pair = pair_of(piece);
        if (place < 0) continue;
        if (residual != nullptr) {
          const float2 more = *reinterpret_cast<const float2*>(residual + place);
          pair = make_float2(pair.x + more.x, pair.y + more.y);
        }
        *reinterpret_cast<float2*>(out + place) = pair;
      }
    } else {
#pragma unroll
      for (int first = 0; first < kPieces; first += 4) {
        uint32_t pairs[4];
#pragma unroll
        for (int p = 0; p < 4; ++p) {
          const float2 pair = pair_of(first + p);
          pairs[p] = pack<Out>(pair.x, pair.y);
        }
        exchange(pairs);
        const int64_t place = at(row, first_column + (first + lane % 4) * 8);
        if (place < 0) continue;
        uint4 numbers_of_row = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        if (residual != nullptr) {
          const uint4 more = *reinterpret_cast<const uint4*>(residual + place);
          numbers_of_row = make_uint4(plus<Out>(pairs[0], more.x), plus<Out>(pairs[1], more.y),
                                      plus<Out>(pairs[2], more.z), plus<Out>(pairs[3], more.w));
        }
        *reinterpret_cast<uint4*>(out + place) = numbers_of_row;
      }
    }
  }
}

}  // namespace mutilde::cuda
