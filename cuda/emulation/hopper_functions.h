// Stands in for the PTX of cuda/hopper/instructions.h: the same functions, as C++.
//
// A barrier in shared memory has the size that it has on a GPU, and fibers wait for it (Block::wait_until).
// The copy engine copies at once. Products are computed at the last moment, when they are waited for, from
// what the tiles hold then: a kernel that gives a tile back too early multiplies what came after it.
//
// Addresses, descriptors and the swizzle are the hardware's, as the PTX manual has them. Sums are added in
// the order of k, where tensor cores add in groups and cut off bits. That a warpgroup's threads come
// together to a product, and fence the registers that they wrote, is not checked.
#pragma once

#include <cstdint>

#include "cuda/emulation/include/cuda_bf16.h"
#include "cuda/emulation/include/cuda_fp16.h"
#include "cuda/emulation/thread.h"

// NOLINTBEGIN(readability-identifier-naming): CUDA's names.

using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;

/// Boxes of an array of 16-bit elements, whose bits are copied; the innermost axis first, distances in elements.
struct alignas(64) CUtensorMap {
  const unsigned char* array;
  int rank;
  int64_t sizes[4], strides[4];
  int box[4], steps[4];  // of the box: elements that are copied, and from one to the next
};

// NOLINTEND(readability-identifier-naming)

namespace mutilde::emulation {

/// Throws Error for what of our arrays cuTensorMapEncodeTiled would refuse: their alignment, sizes, box and steps.
CUtensorMap make_tensor_map(const void* array, int rank, const uint64_t* sizes, const uint32_t* box,
                            const uint32_t* steps);
void copy_box(const CUtensorMap& map, const int* begin, void* tile, uint64_t* barrier);
/// Of factors E: __nv_bfloat16 or __half.
template <class E>
void add_product(float* d, uint64_t a, bool a_transposed, uint64_t b, bool b_transposed);

}  // namespace mutilde::emulation

namespace mutilde::cuda::hopper {

using emulation::CallSite;

/// Where it is in the block's shared memory, whose patterns of 1024 bytes begin where the host's do.
uint32_t shared_address(const void* pointer);

void init_barrier(uint64_t* barrier, int arrivals);
void arrive(uint64_t* barrier);
void arrive_and_expect(uint64_t* barrier, uint32_t bytes);
void wait(uint64_t* barrier, uint32_t parity, CallSite site = CallSite::here());
inline void publish_barriers() {}

inline void copy_tile(const CUtensorMap& matrix, int row, int column, void* tile, uint64_t* full) {
  const int begin[] = {column, row};
  emulation::copy_box(matrix, begin, tile, full);
}
inline void copy_tile(const CUtensorMap& filters, int c_out, int tap, int c, void* tile,
                      uint64_t* full) {
  const int begin[] = {c, tap, c_out};
  emulation::copy_box(filters, begin, tile, full);
}
inline void copy_tile(const CUtensorMap& images, int n, int h, int w, int c, void* tile,
                      uint64_t* full) {
  const int begin[] = {c, w, h, n};
  emulation::copy_box(images, begin, tile, full);
}

inline void fence_registers() {}
inline void pin(float (&)[64]) {}
template <class E, bool a_transposed, bool b_transposed>
void multiply(float (&d)[64], uint64_t a, uint64_t b) {
  emulation::add_product<E>(d, a, a_transposed, b, b_transposed);
}
void commit_products();
void wait_for_products(int pending);
template <int pending>
void wait_for_products() {
  wait_for_products(pending);
}

template <int rank, class E>
CUtensorMap tensor_map(const E* array, const cuuint64_t (&sizes)[rank],
                       const cuuint32_t (&box)[rank], const cuuint32_t (&steps)[rank]) {
  static_assert(sizeof(E) == 2);
  return emulation::make_tensor_map(array, rank, sizes, box, steps);
}

}  // namespace mutilde::cuda::hopper
