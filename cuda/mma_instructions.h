// A warp's instructions for products of small matrices of a short type, which C++ spells as PTX: from compute
// capability 8.0 on. nvcuda::wmma has products too, but does not say which lane holds what; here that is
// known, so a matrix of sums can become a factor without leaving its registers. Emulated, functions of the
// same names do what they do.
//
// All are made of matrices of 8 x 8 numbers. Lane l of the warp holds, of row l / 4, columns 2 (l % 4) and
// 2 (l % 4) + 1: two short numbers in one register, the first in its lower half, or two sums in two.
#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/launch.h"
#ifndef __CUDACC__
#include "cuda/emulation/mma_functions.h"
#else

namespace mutilde::cuda {

/// sums += a b, of 16 x 16 by 16 x 8, of E: __nv_bfloat16 or __half. Of a come first the upper and the lower left
/// matrix, then those to the right; of the sums the upper and the lower one; of b, whose k run along the rows in
/// a register (it is held transposed), k 0-7 and 8-15.
template <class E>
__device__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<E, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

/// Four matrices from shared memory. Lane l names where row l % 8 of matrix l / 8 begins, a multiple of
/// 16 bytes.
__device__ inline void load_matrices(uint32_t (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

/// The same, each transposed.
__device__ inline void load_transposed(uint32_t (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

/// Starts the copy of 4 or 16 bytes from global to shared memory, or, unless `exists`, of zeros. Both begin
/// at multiples of their size.
template <int bytes>
__device__ void copy_async(void* shared, const void* global, bool exists) {
  static_assert(bytes == 4 || bytes == 16);
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int given = exists ? bytes : 0;
  if constexpr (bytes == 16) {  // past L1, which has nothing of it to give twice
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(given)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(given)
                 : "memory");
  }
}

/// Makes a group of this thread's copies since the last.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Until at most so many of the groups that this thread committed last are under way.
template <int pending>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/// Two numbers in a register, rounded to E.
template <class E>
__device__ uint32_t pack(float low, float high) {
  uint32_t both;
  if constexpr (std::is_same_v<E, __half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  }
  return both;
}

/// 2^x to 2 in 2^23, and 0 where that is below the least normal number.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace mutilde::cuda
#endif
