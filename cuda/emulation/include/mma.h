// Stands in for CUDA's header of this name: products of small matrices by a whole warp, 16 x 16 by
// 16 x 16 of bfloat16 or half, and 16 x 8 by 8 x 16 of tf32.
//
// A fragment is a matrix spread over the 32 lanes. Lane l has elements l, l + 32, l + 64, ... in
// row-major order. Hardware spreads them otherwise, by kind and by GPU, and does not
// say how: a kernel may do to all elements of a fragment the same thing, and must not ask where
// they sit. Every call here needs all 32 lanes.
//
// Products are exact in float (8 + 8 or 11 + 11 significant bits) and added in the order of k. A tf32
// is a float of which tensor cores ignore the last 13 bits: so do we, and a kernel that forgets to
// round (__float_to_tf32) loses digits here too.
// Tensor cores add in groups, and cut off bits where a float addition rounds.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/emulation/include/cuda_bf16.h"
#include "cuda/emulation/include/cuda_fp16.h"
#include "cuda/emulation/thread.h"

// NOLINTBEGIN(readability-identifier-naming): CUDA's names.

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

namespace precision {
struct tf32;
}

/// What a lane holds of a T.
template <class T>
struct storage {
  using type = T;
};
template <>
struct storage<precision::tf32> {
  using type = float;
};

template <class Use, int m, int n, int k, class T, class Layout = void>
struct fragment {
  static_assert(m == 16 && n == 16 && (k == 16 || k == 8),
                "the emulation has the shapes 16 x 16 x 16 and 16 x 16 x 8 only");
  static_assert(std::is_same_v<Use, accumulator> || (k == 8) == std::is_same_v<T, precision::tf32>,
                "a k of 8 is for tf32, and tf32 for a k of 8");
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? k : m;
  static constexpr int columns = std::is_same_v<Use, matrix_a> ? k : n;
  static constexpr int num_elements = rows * columns / 32;
  using element_type = typename storage<T>::type;
  element_type x[num_elements];
};

}  // namespace nvcuda::wmma

namespace mutilde::emulation {

using nvcuda::wmma::fragment;

inline void wait_for_warp(const WarpCall& call, void* payload, CallSite site) {
  running_block(call.name).wait_in_warp(call, 0xffffffff, payload, site);
}

/// The alignment that hardware needs, and does not always report: 32 bytes for the matrix, 16 bytes
/// from row to row.
template <class T>
void check_matrix(const char* call, const T* matrix, unsigned leading, CallSite site) {
  if (reinterpret_cast<uintptr_t>(matrix) % 32 != 0) {
    fail<KernelFault>("{}: {} at {}: the matrix is not aligned to 32 bytes",
                      running_block(call).where(), call, site.to_string());
  }
  if (leading * sizeof(T) % 16 != 0) {
    fail<KernelFault>("{}: {} at {}: a leading dimension of {} is no multiple of {}",
                      running_block(call).where(), call, site.to_string(), leading, 16 / sizeof(T));
  }
}

/// Calls f(element, offset in memory) for each of this lane's elements.
template <class Fragment, class F>
void for_elements(Fragment& fragment, unsigned leading, bool row_major, const F& f) {
  for (int i = 0; i < Fragment::num_elements; ++i) {
    const auto place = static_cast<unsigned>(i * kWarpSize + lane_index());
    const unsigned row = place / Fragment::columns, column = place % Fragment::columns;
    f(fragment.x[i], row_major ? size_t{row} * leading + column : size_t{column} * leading + row);
  }
}

inline constexpr WarpCall kLoadMatrixSync{"load_matrix_sync", Lanes::kNamed, nullptr};
inline constexpr WarpCall kStoreMatrixSync{"store_matrix_sync", Lanes::kNamed, nullptr};

template <class Fragment, class T>
void load_matrix(Fragment& fragment, const T* matrix, unsigned leading, bool row_major,
                 CallSite site) {
  check_matrix("load_matrix_sync", matrix, leading, site);
  wait_for_warp(kLoadMatrixSync, nullptr, site);
  for_elements(fragment, leading, row_major, [&](T& x, size_t offset) { x = matrix[offset]; });
}

/// An element of a factor, as the tensor cores see it.
template <class T, class Element>
float factor(Element x) {
  if constexpr (std::is_same_v<T, nvcuda::wmma::precision::tf32>) {
    return std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0xffffe000);
  } else {
    return x;
  }
}

/// One lane's fragments of D = A B + C; T: what the factors are.
template <class T, class D, class A, class B, class C>
struct MatrixProduct {
  D* d;
  const A* a;
  const B* b;
  const C* c;

  static constexpr int kDepth = A::columns;

  static void complete(unsigned, void* const* payload) {
    float a[16 * kDepth], b[kDepth * 16], sum[16][16];
    const auto lane_of = [&](int place) -> const MatrixProduct& {
      return *static_cast<const MatrixProduct*>(payload[place % kWarpSize]);
    };
    for (int place = 0; place < 16 * kDepth; ++place) {
      a[place] = factor<T>(lane_of(place).a->x[place / kWarpSize]);
      b[place] = factor<T>(lane_of(place).b->x[place / kWarpSize]);
    }
    for (int place = 0; place < 256; ++place) {
      sum[place / 16][place % 16] = lane_of(place).c->x[place / kWarpSize];
    }
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < kDepth; ++k) {
        for (int column = 0; column < 16; ++column) {
          sum[row][column] += a[row * kDepth + k] * b[k * 16 + column];
        }
      }
    }
    for (int place = 0; place < 256; ++place) {
      lane_of(place).d->x[place / kWarpSize] = sum[place / 16][place % 16];
    }
  }
  static constexpr WarpCall kCall{"mma_sync", Lanes::kNamed, complete};
};

}  // namespace mutilde::emulation

namespace nvcuda::wmma {

using mutilde::emulation::CallSite;

/// To nearest, ties away from zero, as the hardware's conversion.
inline float __float_to_tf32(float x) {
  return std::bit_cast<float>((std::bit_cast<uint32_t>(x) + 0x1000) & 0xffffe000);
}

template <class Use, int k, class T, class Layout>
void fill_fragment(fragment<Use, 16, 16, k, T, Layout>& f, const typename storage<T>::type& value) {
  for (auto& x : f.x) x = value;
}

/// A or B, whose type says the layout. `leading`: elements from one row (or column) to the next.
template <class Use, int k, class T, class Layout>
void load_matrix_sync(fragment<Use, 16, 16, k, T, Layout>& f,
                      const typename storage<T>::type* matrix, unsigned leading,
                      CallSite site = CallSite::here()) {
  mutilde::emulation::load_matrix(f, matrix, leading, std::is_same_v<Layout, row_major>, site);
}

template <int k, class T>
void load_matrix_sync(fragment<accumulator, 16, 16, k, T>& f, const T* matrix, unsigned leading,
                      layout_t layout, CallSite site = CallSite::here()) {
  mutilde::emulation::load_matrix(f, matrix, leading, layout == mem_row_major, site);
}

template <int k, class T>
void store_matrix_sync(T* matrix, const fragment<accumulator, 16, 16, k, T>& f, unsigned leading,
                       layout_t layout, CallSite site = CallSite::here()) {
  mutilde::emulation::check_matrix("store_matrix_sync", matrix, leading, site);
  mutilde::emulation::wait_for_warp(mutilde::emulation::kStoreMatrixSync, nullptr, site);
  mutilde::emulation::for_elements(f, leading, layout == mem_row_major,
                                   [&](const T& x, size_t offset) { matrix[offset] = x; });
}

/// d = a b + c, in float. d may be c.
template <int k, class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, 16, 16, k, float>& d,
              const fragment<matrix_a, 16, 16, k, T, LayoutA>& a,
              const fragment<matrix_b, 16, 16, k, T, LayoutB>& b,
              const fragment<accumulator, 16, 16, k, float>& c, CallSite site = CallSite::here()) {
  mutilde::emulation::MatrixProduct<
      T, fragment<accumulator, 16, 16, k, float>, fragment<matrix_a, 16, 16, k, T, LayoutA>,
      fragment<matrix_b, 16, 16, k, T, LayoutB>, fragment<accumulator, 16, 16, k, float>>
      product{&d, &a, &b, &c};
  mutilde::emulation::wait_for_warp(product.kCall, &product, site);
}

}  // namespace nvcuda::wmma

// NOLINTEND(readability-identifier-naming)
