// One matrix product, written three times, each faster than the one before. out = a b with
// a: [M, K], b: [K, N], out: [M, N], all row-major on the device, of any size up to
// the grid's limit (M: 524,280 for the plain one).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace mutilde::cuda {

/// One thread an element of out. T is float or double.
template <class T>
void matmul_plain(const T* a, const T* b, T* out, int M, int N, int K, cudaStream_t stream);

/// Tiles in shared memory, a 4 x 4 piece of out in each thread's registers. T is float or double.
template <class T>
void matmul_tiled(const T* a, const T* b, T* out, int M, int N, int K, cudaStream_t stream);

/// Tensor cores: factors E, __nv_bfloat16 or __half, and float32 sums.
template <class E>
void matmul_wmma(const E* a, const E* b, float* out, int M, int N, int K, cudaStream_t stream);

}  // namespace mutilde::cuda
