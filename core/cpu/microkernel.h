// The one inner loop that matrix products, convolutions (forward and both
// gradients) and attention share.
//
// It keeps a tile of C, kTileRows x kTileColumns, in registers and walks along k:
//
//   c[r][j] += a[r][k] * b[k][j]
//
// With AVX2 the tile is 6 rows x 16 floats: 12 accumulators, two vectors of b and one broadcast of
// a fill 15 of the 16 registers. A step along k loads 2 vectors of b and broadcasts 6 numbers of a
// for 12 multiply-adds; a core issues 2 loads and 2 multiply-adds a cycle, so the loads (4 cycles)
// hide behind the arithmetic (6 cycles), and 12 independent chains cover the latency of 4. AVX-512
// has 32 registers: 12 rows x 32 floats.
//
// b is read in order, best from a packed panel [k][kTileColumns], where one step is a cache line, or
// with AVX-512 two, that is prefetched 8 steps ahead: a panel may live in L2. a is read through a pointer for each
// row. The walk is cut into runs, and each run brings its own pointers: that is how a convolution
// reads the input where it lies, one run for each kernel tap (with a row of zeros standing in for
// pixels outside the image), and needs no copy of its input patches
// (but of an image's, whose 3 channels are too few: conv.cpp).
//
// The factors may be numbers or pairs of bfloat16 numbers (simd::Bf16Pair), of which a step adds both
// products to a float: with AVX512_BF16 in one instruction, at the rate of the other, so twice as fast.
#pragma once

#include <cstdint>

#include "core/cpu/simd.h"

namespace mutilde {

#if defined(__AVX512F__)
inline constexpr int kTileRows = 12;
#else
inline constexpr int kTileRows = 6;
#endif
template <class T>
inline constexpr int kTileColumns = 2 * simd::kLanes<T>;

/// What factors F add up in, and how many terms one step has.
template <class F>
struct Factor {
  using Sum = F;
  static constexpr int64_t kTerms = 1;
};
template <>
struct Factor<simd::Bf16Pair> {
  using Sum = float;
  static constexpr int64_t kTerms = 2;
};
template <class F>
using Sum = typename Factor<F>::Sum;

/// The number of columns of a panel that has `columns` left to cover: one or two vectors.
template <class T>
int64_t panel_width(int64_t columns) {
  return columns > simd::kLanes<T> ? kTileColumns<T> : simd::kLanes<T>;
}

/// c[r][0..columns) = start + sum over runs and k of a[r][k * a_step] * b[k * b_step ..], where
/// `start` is a row of kVectors vectors; or, if it is null, c[r][0..columns) += that sum (c is
/// fetched while the sum is made and added last).
///
/// `runs` has a count and enter(i, a, b), which sets the pointers for run i and returns its length.
/// Every element is one chain of multiply-adds in the order of k, so the shape of the tile that
/// computes it never shows in the result.
template <class F, int kRows, int kVectors, class Runs>
inline void multiply_tile(const Runs& runs, int64_t a_step, int64_t b_step, const Sum<F>* start,
                          Sum<F>* const* c, int64_t columns) {
  using T = Sum<F>;
  using V = simd::Vec<T>;
  constexpr int kLanes = simd::kLanes<T>;
  V sums[kRows][kVectors];
  const bool whole = columns == kVectors * kLanes;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    if (start == nullptr) __builtin_prefetch(c[r], 1);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = start != nullptr ? simd::load(start + v * kLanes) : V{};
    }
  }
  for (int64_t i = 0; i < runs.count; ++i) {
    const F* a[kRows];
    const F* b;
    const int64_t length = runs.enter(i, a, b);
    int64_t at = 0;
    for (int64_t k = 0; k < length; ++k) {
      __builtin_prefetch(b + 8 * b_step);
      simd::Vec<F> row[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) row[v] = simd::load(b + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const simd::Vec<F> x = simd::broadcast(a[r][at]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          sums[r][v] = simd::fma(x, row[v], sums[r][v]);
        }
      }
      at += a_step;
      b += b_step;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      T* to = c[r] + v * kLanes;
      if (whole) {
        simd::store(to, start != nullptr ? sums[r][v] : sums[r][v] + simd::load(to));
      } else {
        const int64_t count = columns - v * kLanes;
        if (start == nullptr) sums[r][v] += simd::load_partial(to, count);
        simd::store_partial(to, sums[r][v], count);
      }
    }
  }
}

/// The same for a number of rows and a panel width that are known at run time only.
template <class F, class Runs, int kRows = kTileRows>
inline void multiply_tile(int64_t rows, int64_t width, const Runs& runs, int64_t a_step,
                          int64_t b_step, const Sum<F>* start, Sum<F>* const* c, int64_t columns) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return multiply_tile<F, Runs, kRows - 1>(rows, width, runs, a_step, b_step, start, c,
                                               columns);
    }
  }
  if (width == kTileColumns<F>) {
    multiply_tile<F, kRows, 2>(runs, a_step, b_step, start, c, columns);
  } else {
    multiply_tile<F, kRows, 1>(runs, a_step, b_step, start, c, columns);
  }
}

}  // namespace mutilde
