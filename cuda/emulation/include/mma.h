// Stands in for CUDA's header of this name: products of 16 x 16 matrices by a whole warp.
//
// A fragment is a matrix spread over the 32 lanes, 8 elements each. Lane l has elements l, l + 32,
// l + 64, ... in row-major order. Hardware spreads them otherwise, by kind and by GPU, and does not
// say how: a kernel may do to all elements of a fragment the same thing, and must not ask where
// they sit. Every call here needs all 32 lanes.
//
// Products are exact in float (8 + 8 or 11 + 11 bits of fraction) and added in the order of k.
// Tensor cores add in groups, and cut off bits where a float addition rounds.
#pragma once

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

template <class Use, int m, int n, int k, class T, class Layout = void>
struct fragment {
  static_assert(m == 16 && n == 16 && k == 16, "the emulation has the 16 x 16 x 16 shape only");
  static constexpr int num_elements = 16 * 16 / 32;
  using element_type = T;
  T x[num_elements];
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
    const unsigned row = place / 16, column = place % 16;
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

/// One lane's fragments of D = A B + C.
template <class D, class A, class B, class C>
struct MatrixProduct {
  D* d;
  const A* a;
  const B* b;
  const C* c;

  static void complete(unsigned, void* const* payload) {
    float a[16][16], b[16][16], sum[16][16];
    for (int place = 0; place < 256; ++place) {
      const auto& lane = *static_cast<const MatrixProduct*>(payload[place % kWarpSize]);
      const int i = place / kWarpSize, row = place / 16, column = place % 16;
      a[row][column] = lane.a->x[i];
      b[row][column] = lane.b->x[i];
      sum[row][column] = lane.c->x[i];
    }
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        for (int column = 0; column < 16; ++column) sum[row][column] += a[row][k] * b[k][column];
      }
    }
    for (int place = 0; place < 256; ++place) {
      const auto& lane = *static_cast<const MatrixProduct*>(payload[place % kWarpSize]);
      lane.d->x[place / kWarpSize] = sum[place / 16][place % 16];
    }
  }
  static constexpr WarpCall kCall{"mma_sync", Lanes::kNamed, complete};
};

}  // namespace mutilde::emulation

namespace nvcuda::wmma {

using mutilde::emulation::CallSite;

template <class Use, class T, class Layout>
void fill_fragment(fragment<Use, 16, 16, 16, T, Layout>& f, const T& value) {
  for (T& x : f.x) x = value;
}

/// A or B, whose type says the layout. `leading`: elements from one row (or column) to the next.
template <class Use, class T, class Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& f, const T* matrix, unsigned leading,
                      CallSite site = CallSite::here()) {
  mutilde::emulation::load_matrix(f, matrix, leading, std::is_same_v<Layout, row_major>, site);
}

template <class T>
void load_matrix_sync(fragment<accumulator, 16, 16, 16, T>& f, const T* matrix, unsigned leading,
                      layout_t layout, CallSite site = CallSite::here()) {
  mutilde::emulation::load_matrix(f, matrix, leading, layout == mem_row_major, site);
}

template <class T>
void store_matrix_sync(T* matrix, const fragment<accumulator, 16, 16, 16, T>& f, unsigned leading,
                       layout_t layout, CallSite site = CallSite::here()) {
  mutilde::emulation::check_matrix("store_matrix_sync", matrix, leading, site);
  mutilde::emulation::wait_for_warp(mutilde::emulation::kStoreMatrixSync, nullptr, site);
  mutilde::emulation::for_elements(f, leading, layout == mem_row_major,
                                   [&](const T& x, size_t offset) { matrix[offset] = x; });
}

/// d = a b + c, in float. d may be c.
template <class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& d,
              const fragment<matrix_a, 16, 16, 16, T, LayoutA>& a,
              const fragment<matrix_b, 16, 16, 16, T, LayoutB>& b,
              const fragment<accumulator, 16, 16, 16, float>& c, CallSite site = CallSite::here()) {
  mutilde::emulation::MatrixProduct<
      fragment<accumulator, 16, 16, 16, float>, fragment<matrix_a, 16, 16, 16, T, LayoutA>,
      fragment<matrix_b, 16, 16, 16, T, LayoutB>, fragment<accumulator, 16, 16, 16, float>>
      product{&d, &a, &b, &c};
  mutilde::emulation::wait_for_warp(product.kCall, &product, site);
}

}  // namespace nvcuda::wmma

// NOLINTEND(readability-identifier-naming)
