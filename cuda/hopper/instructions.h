// Hopper's own instructions, which C++ spells as PTX: barriers that count, the copy engine (TMA), matrix
// products by a warpgroup (wgmma). wgmma.h tells how they work together. Emulated, functions of the same
// names do what they do.
#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/launch.h"
#ifndef __CUDACC__
#include "cuda/emulation/hopper_functions.h"
#else
#include <cudaTypedefs.h>

namespace mutilde::cuda::hopper {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Barriers.

__device__ inline void init_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals));
}

__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

/// The copy engine sees barriers that were initialised before.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// Arrives, and lets the phase wait for so many bytes of the copy engine too.
__device__ inline void arrive_and_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

/// Until the phase of this parity is over. Phases count from 0; the one before them, of parity 1, is.
__device__ inline void wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{ .reg .pred p;"
        "  mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
        "  selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

/// Starts the copy of a tile, whose first element is (row, column) of the matrix.
__device__ inline void copy_tile(const CUtensorMap& matrix, int row, int column, void* tile,
                                 uint64_t* full) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(tile)),
      "l"(&matrix), "r"(column), "r"(row), "r"(shared_address(full))
      : "memory");
}

/// The same of filters [C_out, taps, C].
__device__ inline void copy_tile(const CUtensorMap& filters, int c_out, int tap, int c, void* tile,
                                 uint64_t* full) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(tile)),
      "l"(&filters), "r"(c), "r"(tap), "r"(c_out), "r"(shared_address(full))
      : "memory");
}

/// The same of images [N, H, W, C].
__device__ inline void copy_tile(const CUtensorMap& images, int n, int h, int w, int c, void* tile,
                                 uint64_t* full) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared_address(tile)),
      "l"(&images), "r"(c), "r"(w), "r"(h), "r"(n), "r"(shared_address(full))
      : "memory");
}

// wgmma.

/// Registers that were written before are seen by the instructions behind it.
__device__ inline void fence_registers() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/// Between the fence and the wait, wgmma writes its sums while the program goes on. The compiler does not know
/// that: to it they are there when the instruction is. This, an empty instruction that reads and writes all of
/// them, is what it moves no use of a sum across.
__device__ inline void pin(float (&sum)[64]) {
  for (float& one : sum) asm volatile("" : "+f"(one)::"memory");
}

/// Makes a group of the instructions since the last.
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Until at most so many of the groups of instructions that were committed last are under way.
template <int pending>
__device__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// What follows the type of a product's factors.
#define MUTILDE_MULTIPLY                        \
  " {%0, %1, %2, %3, %4, %5, %6, %7, "          \
  " %8, %9, %10, %11, %12, %13, %14, %15, "     \
  " %16, %17, %18, %19, %20, %21, %22, %23, "   \
  " %24, %25, %26, %27, %28, %29, %30, %31, "   \
  " %32, %33, %34, %35, %36, %37, %38, %39, "   \
  " %40, %41, %42, %43, %44, %45, %46, %47, "   \
  " %48, %49, %50, %51, %52, %53, %54, %55, "   \
  " %56, %57, %58, %59, %60, %61, %62, %63}, "  \
  "%64, %65, 1, 1, 1, %66, %67;" : "+f"(d[0]),  \
                                   "+f"(d[1]),  \
                                   "+f"(d[2]),  \
                                   "+f"(d[3]),  \
                                   "+f"(d[4]),  \
                                   "+f"(d[5]),  \
                                   "+f"(d[6]),  \
                                   "+f"(d[7]),  \
                                   "+f"(d[8]),  \
                                   "+f"(d[9]),  \
                                   "+f"(d[10]), \
                                   "+f"(d[11]), \
                                   "+f"(d[12]), \
                                   "+f"(d[13]), \
                                   "+f"(d[14]), \
                                   "+f"(d[15]), \
                                   "+f"(d[16]), \
                                   "+f"(d[17]), \
                                   "+f"(d[18]), \
                                   "+f"(d[19]), \
                                   "+f"(d[20]), \
                                   "+f"(d[21]), \
                                   "+f"(d[22]), \
                                   "+f"(d[23]), \
                                   "+f"(d[24]), \
                                   "+f"(d[25]), \
                                   "+f"(d[26]), \
                                   "+f"(d[27]), \
                                   "+f"(d[28]), \
                                   "+f"(d[29]), \
                                   "+f"(d[30]), \
                                   "+f"(d[31]), \
                                   "+f"(d[32]), \
                                   "+f"(d[33]), \
                                   "+f"(d[34]), \
                                   "+f"(d[35]), \
                                   "+f"(d[36]), \
                                   "+f"(d[37]), \
                                   "+f"(d[38]), \
                                   "+f"(d[39]), \
                                   "+f"(d[40]), \
                                   "+f"(d[41]), \
                                   "+f"(d[42]), \
                                   "+f"(d[43]), \
                                   "+f"(d[44]), \
                                   "+f"(d[45]), \
                                   "+f"(d[46]), \
                                   "+f"(d[47]), \
                                   "+f"(d[48]), \
                                   "+f"(d[49]), \
                                   "+f"(d[50]), \
                                   "+f"(d[51]), \
                                   "+f"(d[52]), \
                                   "+f"(d[53]), \
                                   "+f"(d[54]), \
                                   "+f"(d[55]), \
                                   "+f"(d[56]), \
                                   "+f"(d[57]), \
                                   "+f"(d[58]), \
                                   "+f"(d[59]), \
                                   "+f"(d[60]), \
                                   "+f"(d[61]), \
                                   "+f"(d[62]), \
                                   "+f"(d[63])  \
      : "l"(a), "l"(b), "n"(int{a_transposed}), "n"(int{b_transposed})

/// d += a b by a warpgroup, of tiles of E that descriptors name: 64 x 16 by 16 x 128. Transposed is a factor
/// whose rows in memory do not run along k.
template <class E, bool a_transposed, bool b_transposed>
__device__ void multiply(float (&d)[64], uint64_t a, uint64_t b) {
  if constexpr (std::is_same_v<E, __half>) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16" MUTILDE_MULTIPLY);
  } else {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16" MUTILDE_MULTIPLY);
  }
}
#undef MUTILDE_MULTIPLY

// The host's side.

/// The driver's function, without linking the driver: a machine may have none.
inline PFN_cuTensorMapEncodeTiled_v12000 find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &found),
        "cudaGetDriverEntryPointByVersion");
#else
  check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found),
        "cudaGetDriverEntryPoint");
#endif
  if (found != cudaDriverEntryPointSuccess) fail<Error>("the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

/// What the copy engine must know to copy boxes from a dense array: sizes, of the array and of a box,
/// the innermost first. A box has 64 elements of the innermost axis. Along the others it takes every
/// steps[i]-th element: box[i] counts those in between too.
template <int rank, class E>
CUtensorMap tensor_map(const E* array, const cuuint64_t (&sizes)[rank],
                       const cuuint32_t (&box)[rank], const cuuint32_t (&steps)[rank]) {
  static const auto encode = find_encode();
  cuuint64_t row_bytes[rank - 1];
  for (int i = 0; i + 1 < rank; ++i) {
    row_bytes[i] = sizes[i] * (i == 0 ? sizeof(E) : row_bytes[i - 1]);
  }
  constexpr CUtensorMapDataType kType = std::is_same_v<E, __half>
                                            ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                            : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  CUtensorMap map;
  const CUresult result =
      encode(&map, kType, rank, const_cast<E*>(array), sizes, row_bytes, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    fail<Error>("cuTensorMapEncodeTiled: error {}", static_cast<int>(result));
  }
  return map;
}

}  // namespace mutilde::cuda::hopper
#endif
