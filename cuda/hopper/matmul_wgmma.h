// Rung 4 of the ladder of matrix products, for GPUs of compute capability 9.0 (H100, H200). Compiled
// by nvcc, never run on a GPU yet; the emulation does not have it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace mutilde::cuda {

/// out = a b as in matmul_ladder.h: bfloat16 factors, float32 sums. N and K are multiples of 8, and
/// the arrays begin at multiples of 16 bytes: the copy engine needs both. Throws Error otherwise, and
/// on another GPU.
void matmul_wgmma(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out, int M, int N, int K,
                  cudaStream_t stream);

}  // namespace mutilde::cuda
